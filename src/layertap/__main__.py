"""`python -m layertap` is the command `layertap`."""

import sys

from layertap.cli import main

if __name__ == "__main__":
    sys.exit(main())
