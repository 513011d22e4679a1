"""The door for other programs: `bise serve`, the API that they already speak, and a page."""
