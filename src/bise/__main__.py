"""python -m bise: the same as the bise command."""

from .cli import main

if __name__ == "__main__":
    main()
