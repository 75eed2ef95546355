"""The pipeline: prompts are packed into rows, the model runs, activations go into shards."""

import os

# XLA:CPU reports, each time it loads a cached program on some Intel processors, that two of its own
# tuning preferences are missing machine features: kilobytes of noise, and no fault (jax-ml/jax
# issue 38445). It must be silenced before jaxlib is loaded. Real errors arrive as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
