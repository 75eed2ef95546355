"""How a process of Layertap ends: errors that are raised on purpose become a message and an exit status."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from layertap.errors import LayertapError
from layertap.interruption import INTERRUPTED, interruptible


def guarded(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit status of the error that it ends in, whose message is printed.

    After an interruption the process ends here.
    """
    try:
        with interruptible():
            return run()
    except LayertapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        # An orderly exit would wait for the step that is on the device, for most of a minute on a CPU.
        with suppress(BrokenPipeError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(INTERRUPTED)
