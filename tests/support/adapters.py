"""Small LoRA adapters made by hand; peft_adapters.py has those that PEFT makes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PREFIX = "base_model.model.model."


def write_by_hand(folder: Path, tensors: dict[str, np.ndarray] | None = None, **settings: Any) -> Path:
    """Write an adapter of rank 2 for the queries of layer 1 of the tiny model, or with these
    tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    query = f"{PREFIX}layers.1.self_attn.q_proj"
    own = {
        f"{query}.lora_A.weight": random.normal(size=(2, 64)).astype(np.float32),
        f"{query}.lora_B.weight": random.normal(size=(64, 2)).astype(np.float32),
    }
    save_file(own if tensors is None else tensors, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/base", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(given))
    return folder
