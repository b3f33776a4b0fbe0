"""`python -m diffeo`, the program `diffeo` where it is not on the path."""

import sys

from diffeo.cli import main

if __name__ == "__main__":
    sys.exit(main())
