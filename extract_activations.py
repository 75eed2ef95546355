"""Extract activations: the same command as `layertap extract`. See README.md."""

import sys

from layertap.cli import extract_main

if __name__ == "__main__":
    sys.exit(extract_main())
