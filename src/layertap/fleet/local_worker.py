"""The process that `local_engine` starts: `python -m layertap.fleet.local_worker`, its settings on standard input."""

import os
import pickle
import signal
import sys
import threading

from layertap.config.extract import ExtractConfig
from layertap.process.ending import guarded


def main() -> int:
    """Work as the settings say; returns the exit status."""
    config = pickle.load(sys.stdin.buffer)  # from our own parent
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return guarded(lambda: _work(config))


def _work(config: ExtractConfig) -> int:
    from layertap.fleet.worker import work

    print(work(config).describe())
    return 0


def _end_with_parent() -> None:
    """Wait for the parent's end, then stop as after a SIGTERM; what is said from then on goes nowhere."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # the parent held the other ends
        os.dup2(nowhere, descriptor)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
