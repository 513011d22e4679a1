"""The routes: one file for each thing that programs ask for, and what these share."""
