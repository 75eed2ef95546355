"""What several families' files have in common."""

from collections.abc import Sequence

from layertap.model.config import Activation
from layertap.model.config_file import ConfigFile

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def require_activation(file: ConfigFile, usual: str, key: str = "hidden_act") -> Activation:
    """The MLP's activation; raises ModelError if Layertap does not have it."""
    named = file.raw.get(key) or usual
    if named not in _ACTIVATIONS:
        file.refuse(f"{key} is {named!r}; Layertap has {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[str(named)]


def windows_by_type(file: ConfigFile, size: int | None, windowed: Sequence[bool]) -> tuple[int | None, ...]:
    """The window of each layer, by `layer_types` if the file has them, else by `windowed`.

    Raises ModelError if a layer has a window and there is no size.
    """
    types = file.layer_types()
    has = [kind == "sliding_attention" for kind in types] if types else list(windowed)
    if any(has) and size is None:
        file.refuse("has layers with a window (sliding_attention), but no sliding_window that is switched on")
    return tuple(size if own else None for own in has) if any(has) else ()


def window_everywhere(file: ConfigFile) -> tuple[int | None, ...]:
    """The window of each layer, for families whose layers are all alike; ignores `layer_types`."""
    size = file.whole("sliding_window")
    return () if size is None else (size,) * file.sizes()["num_hidden_layers"]
