"""LoRA adapters as PEFT makes and saves them, and models with them: the truth for ours."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT asks transformers by an older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


@_quiet()
def write_adapter(folder: Path, model: Path, *, seed: int = 0, **settings: Any) -> Path:
    """An adapter of this model that changes a lot, saved by PEFT."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(seed)
    made = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    made.save_pretrained(folder)
    return folder


@_quiet()
def with_adapter(model: Path, adapter: Path) -> torch.nn.Module:
    """The decoder with an adapter in it, not merged."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, adapter).base_model.model.model


@_quiet()
def with_adapters(model: Path, first: Path, second: Path) -> torch.nn.Module:
    """The decoder with the sum of two adapters, not merged."""
    made = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), first, adapter_name="first"
    )
    made.load_adapter(second, adapter_name="second")
    made.base_model.set_adapter(["first", "second"])
    return made.base_model.model.model


@_quiet()
def merged_one_by_one(model: Path, *adapters: Path) -> torch.nn.Module:
    """The decoder after PEFT has merged one adapter, and then the next."""
    made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for adapter in adapters:
        made = peft.PeftModel.from_pretrained(made, adapter).merge_and_unload()
    return made.model
