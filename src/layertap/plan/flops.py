"""How many operations a forward pass is: products and causal attention; norms and the like are less than a percent."""

from layertap.model.config import Qwen2Config


def layer_products(config: Qwen2Config) -> int:
    """Elements of one layer's kernels, each of which is multiplied once for a token."""
    heads = config.num_attention_heads * config.head_dim
    qkv = heads + 2 * config.num_key_value_heads * config.head_dim
    return config.hidden_size * (qkv + heads + 3 * config.intermediate_size)


def forward_flops(config: Qwen2Config, layers: int, tokens: float, attended: float) -> float:
    """Operations of `layers` layers on so many tokens, of which `attended` (query, key) pairs see each other."""
    heads = config.num_attention_heads * config.head_dim
    return 2.0 * layers * (layer_products(config) * tokens + 2 * heads * attended)


def causal_pairs(tokens: float) -> float:
    """(query, key) pairs of one sample of so many tokens: each sees itself and what is before it."""
    return tokens * (tokens + 1) / 2
