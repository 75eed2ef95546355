"""Whether a call lets other threads run."""

import sys
import threading
from collections.abc import Callable

_TRIES = 2000


def others_run_during(call: Callable[[], object]) -> bool:
    """Return whether another thread ran during one of many calls.

    Python takes the interpreter from no thread here, so only the call can give it away.
    """
    begun, other_ran = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: (begun.wait(), other_ran.set()))
    interval = sys.getswitchinterval()
    other.start()
    sys.setswitchinterval(10_000)
    try:
        begun.set()
        for _ in range(_TRIES):
            call()
            if other_ran.is_set():
                return True
        return False
    finally:
        sys.setswitchinterval(interval)
        other.join()
