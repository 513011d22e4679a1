"""The page at /: its files, and the conversations that it keeps."""
