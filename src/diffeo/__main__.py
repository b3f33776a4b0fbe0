"""`python -m diffeo`, the program `diffeo` where it is not on the path."""

import sys

from diffeo.cli import main

sys.exit(main())
