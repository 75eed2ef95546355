"""transformers in float64 throughout: the truth that float32 is compared with.

A model that is loaded in float64 still takes its norms, cosines and sines in float32, whatever its
dtype. That would favour whoever rounds them the same way.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Have the Qwen2 models of transformers compute norms, cosines and sines in float64, in this
    block.

    The angles stay what float32 makes of them: models are trained with those.
    """
    import torch
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm, Qwen2RotaryEmbedding

    def norm(self: Any, x: Any) -> Any:  # noqa: ANN401 - of torch, which is imported late
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self: Any, _x: Any, position_ids: Any) -> Any:  # noqa: ANN401
        angles = (position_ids[..., None].float() * self.inv_freq.float()).double()
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()

    with patch.object(Qwen2RMSNorm, "forward", norm), patch.object(Qwen2RotaryEmbedding, "forward", rotary):
        yield
