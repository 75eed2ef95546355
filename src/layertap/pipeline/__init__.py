"""The pipeline: prompts are packed into rows, the model runs, activations go into shards."""

import os

# On some Intel processors, XLA:CPU reports each time it loads a cached program that two of its own
# tuning preferences are missing machine features: kilobytes of noise, and no error (jax-ml/jax
# issue 38445). We must silence it before jaxlib is loaded. Real errors come as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
