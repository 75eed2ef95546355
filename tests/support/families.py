"""Small checkpoints of every family, made by transformers itself. Norms and biases are random, and
windows and caps are small enough to matter.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

_SMALL = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 256}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * place for place in range(16)],
    "long_factor": [2.0 + 0.3 * place for place in range(16)],
}

_HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_GEMMA = {"head_dim": 32, "sliding_window": 100, "query_pre_attn_scalar": 48}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": _YARN}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 100, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 64}),
    "llama": ("Llama", {}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-3.1": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("Mistral", {"sliding_window": 100, "head_dim": 32}),
    "gemma2": ("Gemma2", _GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma3": ("Gemma3Text", _GEMMA | {"sliding_window_pattern": 3}),
    "phi3": ("Phi3", {"sliding_window": None}),
    "phi3-long": ("Phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 1024}),
    "phi3-partial": ("Phi3", {"rope_parameters": _HALF}),
}  # fmt: skip


def write_family(folder: Path, name: str, seed: int = 0, **changes: Any) -> None:
    """A checkpoint of the family in float32."""
    kind, own = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**(_SMALL | own | changes))
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif "norm" in parameter_name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.dim() == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
