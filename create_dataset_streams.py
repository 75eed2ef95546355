"""Deal a dataset out to workers: the same command as `layertap streams`. See README.md."""

import sys

from layertap.cli import streams_main

if __name__ == "__main__":
    sys.exit(streams_main())
