"""The Python API: `Model`, `extract`, and streams of activations.

The other rooms do the work. This one takes settings as keywords, and adds what notebooks need:
readable results, progress bars, and objects that survive Ctrl-C.
"""

import layertap.pipeline  # noqa: F401 - quietens XLA, which must come before jax
