"""What a Python program uses: `Model`, `extract`, and streams of activations.

The other rooms do the work. Here are their settings as keywords, and what notebooks need: results
that show themselves, bars, and objects that live on after Ctrl-C.
"""

import layertap.pipeline  # noqa: F401 - quietens XLA, which must come before jax
