"""Adapters against PEFT at every site and layer; slices of what they change; what is refused."""

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import families
import forward
import huggingface
import jax
import jax.numpy as jnp
import numpy as np
import peft_adapters
import pytest
from adapters import PREFIX, write_by_hand
from safetensors.numpy import load_file, save_file

from layertap.core.taps import Tap
from layertap.errors import ModelError
from layertap.model import weights
from layertap.model.adapters import merged
from layertap.model.attention import attend_flash
from layertap.model.checkpoint import open_checkpoint
from layertap.model.decoder import ForwardPlan
from layertap.model.layout import tensor_names

Settings = dict[str, Any]

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
_FUSED = r".*\.layers\.[02]\..*(qkv_proj|gate_up_proj|down_proj)"
_PATTERNS: Settings = {
    "r": 8,
    "rank_pattern": {"down_proj": 4, r"layers\.1\.self_attn\.q_proj": 2},
    "alpha_pattern": {r".*layers\.[12]\.mlp\.gate_proj": 40, "k_proj": 1},
}
KINDS: dict[str, tuple[str, Settings]] = {
    "lora": ("qwen2", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
    "rslora": ("qwen2", {"r": 8, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True}),
    "dora": ("qwen2", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "use_dora": True}),
    "patterns": ("qwen2", {"target_modules": "all-linear", **_PATTERNS}),
    "regex": ("llama", {"r": 4, "target_modules": r".*\.(1|3)\.(self_attn|mlp)\.(o|up|down)_proj"}),
    "all at once": ("llama", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True, **_PATTERNS}),
    "some layers": ("llama", {"r": 4, "target_modules": _ATTENTION, "layers_to_transform": [0, 2]}),
    "fused": ("phi3", {"r": 8, "target_modules": "all-linear"}),
    "fused, dora": ("phi3", {"r": 8, "target_modules": _FUSED, "use_dora": True}),
    "head norms": ("qwen3", {"r": 8, "target_modules": "all-linear"}),
    "norms after": ("gemma2", {"r": 8, "target_modules": "all-linear"}),
}  # fmt: skip
_PLAN = ForwardPlan(np.dtype(np.float32), attend_flash)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """Models and adapters by their names, each made once."""
    place = tmp_path_factory.mktemp("adapters")

    @cache
    def model(family: str) -> Path:
        families.write_family(place / family, family)
        return place / family

    @cache
    def adapter(kind: str, seed: int = 0) -> Path:
        family, settings = KINDS[kind]
        return peft_adapters.write_adapter(place / f"{kind}-{seed}", model(family), seed=seed, **settings)

    return model, adapter


def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(3, 512, 300, dtype=np.int32)


def worst_error(values: dict[Tap, np.ndarray], truth: dict[Tap, np.ndarray], what: str) -> float:
    assert set(values) == set(truth)
    worst = max(huggingface.relative_errors(values[tap], truth[tap]).max() for tap in truth)
    print(f"{what:30} worst {worst:.1e}", file=sys.stderr)
    return float(worst)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_within_1e_4_of_peft(folders, kind: str) -> None:
    model, adapter = folders[0](KINDS[kind][0]), folders[1](kind)
    truth = huggingface.activations_of(peft_adapters.with_adapter(model, adapter), ids())
    values = forward.activations(model, ids(), _PLAN, adapters=[adapter])
    assert worst_error(values, truth, kind) <= 1e-4
    without = forward.activations(model, ids(), _PLAN)
    last = Tap(3, "residual")
    assert huggingface.relative_errors(without[last], truth[last]).mean() > 0.05


@pytest.mark.parametrize("second", ["lora", "rslora"])
def test_two_adapters_are_added(folders, second: str) -> None:
    model, *both = folders[0]("qwen2"), folders[1]("patterns"), folders[1](second, 1)
    truth = huggingface.activations_of(peft_adapters.with_adapters(model, *both), ids())
    assert worst_error(forward.activations(model, ids(), _PLAN, adapters=both), truth, f"patterns + {second}") <= 1e-4


@pytest.mark.parametrize(("first", "second"), [("dora", "lora"), ("lora", "dora"), ("dora", "dora")])
def test_dora_is_applied_to_what_those_before_it_have_made(folders, first: str, second: str) -> None:
    model, *both = folders[0]("qwen2"), folders[1](first), folders[1](second, 1)
    truth = huggingface.activations_of(peft_adapters.merged_one_by_one(model, *both), ids())
    assert worst_error(forward.activations(model, ids(), _PLAN, adapters=both), truth, f"{first}, {second}") <= 1e-4


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_part_of_a_changed_matrix_is_that_part_of_the_whole(folders, kind: str, monkeypatch) -> None:
    monkeypatch.setattr("layertap.model.adapters._BLOCK", 50)
    checkpoint = open_checkpoint(str(folders[0]("qwen2")), adapters=[str(folders[1](kind))])
    name = "model.layers.1.self_attn.q_proj.weight"
    with checkpoint.open_tensors([name]) as tensors, merged(tensors, checkpoint.adapters) as changed:
        whole = changed[name].read(slice(None), slice(None))
        assert whole.dtype == np.float32
        assert not np.array_equal(whole, tensors[name].read(slice(None), slice(None)))
        for part in ((slice(3, 50), slice(None)), (slice(None), slice(64, 128)), (slice(7, 9), slice(0, 32))):
            np.testing.assert_allclose(changed[name].read(*part), whole[part], rtol=0, atol=1e-6)


def test_the_sum_is_rounded_once_to_the_compute_dtype(folders) -> None:
    checkpoint = open_checkpoint(str(folders[0]("qwen2")), adapters=[str(folders[1]("dora"))])
    exact, rounded = (jax.tree.leaves(weights.load(checkpoint, 2, dtype)) for dtype in (jnp.float32, jnp.bfloat16))
    for one, other in zip(exact, rounded, strict=True):
        np.testing.assert_array_equal(one.astype(other.dtype), other)


def test_fan_in_fan_out_changes_nothing(folders, tmp_path: Path) -> None:
    """As in PEFT, for linear layers."""
    own = shutil.copytree(folders[1]("lora"), tmp_path / "own")
    edit(own, fan_in_fan_out=True)
    model = folders[0]("qwen2")
    one, other = (
        weights.load(open_checkpoint(str(model), adapters=[str(it)]), 2, jnp.float32)
        for it in (own, folders[1]("lora"))
    )
    assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


# --- what tells adapters apart


def identity(model: Path, adapter: Path, layers: int) -> str:
    checkpoint = open_checkpoint(str(model), adapters=[str(adapter)])
    return checkpoint.adapters[0].identity(tensor_names(checkpoint.config, layers))


def test_scale_and_numbers_tell_adapters_apart_up_to_the_last_layer(tiny_model: Path, tmp_path: Path) -> None:
    plain = write_by_hand(tmp_path / "plain")
    same = write_by_hand(tmp_path / "same", base_model_name_or_path="elsewhere", lora_dropout=0.1)
    stronger = write_by_hand(tmp_path / "stronger", lora_alpha=5)
    other = write_by_hand(tmp_path / "other", {k: 2 * v for k, v in read(plain).items()})
    assert identity(tiny_model, plain, 2) == identity(tiny_model, same, 2)
    assert len({identity(tiny_model, it, 2) for it in (plain, stronger, other)}) == 3
    assert identity(tiny_model, plain, 1) == identity(tiny_model, other, 1)


# --- what is refused


def read(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


QUERY = "layers.1.self_attn.q_proj"
EYE = np.eye(2, 64, dtype=np.float32)
REFUSED: dict[str, tuple[Settings, dict[str, np.ndarray], str]] = {
    "another type": ({"peft_type": "IA3"}, {}, "is of type IA3; Layertap applies LORA"),
    "prefix": ({"peft_type": "PREFIX_TUNING"}, {}, "is of type PREFIX_TUNING"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, {}, "path_initial_model_for_weight_conversion"),
    "a variant": ({"use_qalora": True}, {}, "has use_qalora, which Layertap does not apply; merge it"),
    "a variant of tomorrow": ({"use_new": {"a": 1}}, {}, "has use_new, which"),
    "replicated layers": ({"layer_replication": [[0, 2]]}, {}, "has layer_replication"),
    "embeddings": ({}, {f"{PREFIX}embed_tokens.weight": EYE}, "does not apply: .*embed_tokens.weight"),
    "embeddings by lora": ({}, {f"{PREFIX}embed_tokens.lora_embedding_A": EYE}, "embed_tokens.lora_embedding_A"),
    "biases": ({"bias": "all"}, {f"{PREFIX}{QUERY}.base_layer.bias": EYE}, "q_proj.base_layer.bias"),
    "bias of B": ({"lora_bias": True}, {f"{PREFIX}{QUERY}.lora_B.bias": EYE}, "lora_B.bias"),
    "a norm": ({}, {f"{PREFIX}layers.0.input_layernorm.weight": EYE}, "input_layernorm.weight"),
    "a part for images": ({}, {f"base_model.model.visual.{QUERY}.lora_A.weight": EYE}, "visual.layers"),
    "half of an update": ({}, {f"{PREFIX}layers.0.mlp.up_proj.lora_A.weight": EYE}, "up_proj.lora_A.weight alone"),
    "dora without lengths": ({"use_dora": True}, {}, "lora_B.weight alone"),
    "lengths without dora": ({}, {f"{PREFIX}{QUERY}.lora_magnitude_vector": EYE[0]}, "lora_magnitude_vector alone"),
    "too few lengths": (
        {"use_dora": True}, {f"{PREFIX}{QUERY}.lora_magnitude_vector": EYE[0, :9]}, "has 64 rows, and the adapter 9",
    ),
    "another rank": ({"rank_pattern": {"q_proj": 3}}, {}, "rank 3, and the adapter's tensors have 2"),
    "another width": (
        {}, {f"{PREFIX}{QUERY}.lora_A.weight": np.eye(2, 65, dtype=np.float32)},
        r"belongs to another model:\n  model.layers.1.self_attn.q_proj.weight has shape \(64, 64\)",
    ),
    "integers": ({}, {f"{PREFIX}{QUERY}.lora_A.weight": EYE.astype(np.int8)}, "is stored as I8"),
    "no number": ({"lora_alpha": "4"}, {}, "lora_alpha of model.layers.1.self_attn.q_proj is '4', not a positive"),
    "no pattern": ({"alpha_pattern": {"(": 4}}, {}, "alpha_pattern has no patterns with numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_applied_is_refused_by_name(tiny_model: Path, tmp_path: Path, case: str) -> None:
    settings, tensors, message = REFUSED[case]
    adapter = write_by_hand(tmp_path / "adapter")
    write_by_hand(adapter, read(adapter) | tensors, **settings)
    with pytest.raises(ModelError, match=message) as refused:
        open_checkpoint(str(tiny_model), adapters=[str(adapter)])
    assert str(adapter) in str(refused.value)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("layers.9.self_attn.q_proj", "weight is not there: the model has layers 0 to 3"),
        ("layers.1.self_attn.qkv_proj", "qkv_proj.weight is not in a qwen2"),
    ],
)
def test_a_matrix_that_the_model_lacks_is_named(tiny_model: Path, tmp_path: Path, module: str, message: str) -> None:
    own = {name.replace(QUERY, module): tensor for name, tensor in read(write_by_hand(tmp_path / "it")).items()}
    with pytest.raises(ModelError, match=message):
        open_checkpoint(str(tiny_model), adapters=[str(write_by_hand(tmp_path / "it", own))])


def test_what_comes_after_the_last_layer_may_be_there(tiny_model: Path, tmp_path: Path) -> None:
    adapter = write_by_hand(tmp_path / "it", modules_to_save=["lm_head"])
    own = read(adapter)
    behind = {"base_model.model.lm_head.weight": EYE, "base_model.model.score.weight": EYE, f"{PREFIX}norm.weight": EYE}
    save_file(own | behind, adapter / "adapter_model.safetensors")
    (opened,) = open_checkpoint(str(tiny_model), adapters=[str(adapter)]).adapters
    assert [*opened.updates] == ["model.layers.1.self_attn.q_proj.weight"]


def test_names_of_the_bare_decoder(tiny_model: Path, tmp_path: Path) -> None:
    own = {name.replace(PREFIX, "base_model.model."): it for name, it in read(write_by_hand(tmp_path / "it")).items()}
    (opened,) = open_checkpoint(str(tiny_model), adapters=[str(write_by_hand(tmp_path / "it", own))]).adapters
    assert [*opened.updates] == ["model.layers.1.self_attn.q_proj.weight"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "must be an adapter that PEFT has saved"),
        (lambda folder: (folder / "adapter_config.json").write_text("["), "cannot be read as JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "holds a list, not an object"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors; a pickled"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "is not a whole safetensors file"),
        (lambda folder: save_file({}, folder / "adapter_model.safetensors"), "changes no layer"),
        (shutil.rmtree, "--adapter .*: neither a folder nor a Hub id"),
    ],
)
def test_what_is_no_adapter_is_refused(tiny_model: Path, tmp_path: Path, spoil, message: str) -> None:
    spoil(adapter := write_by_hand(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=message):
        open_checkpoint(str(tiny_model), adapters=[str(adapter)])


# --- an adapter where the model is


def test_an_adapter_beside_a_model_is_applied_or_refused(tiny_model: Path, tmp_path: Path) -> None:
    both = write_by_hand(shutil.copytree(tiny_model, tmp_path / "both"))
    with pytest.raises(ModelError, match=f"has an adapter beside the model .*; give --adapter {both} too"):
        open_checkpoint(str(both))
    assert len(open_checkpoint(str(both), adapters=[str(both)]).adapters) == 1
    (tmp_path / "link").symlink_to(both)
    assert len(open_checkpoint(str(both), adapters=[str(tmp_path / "link")]).adapters) == 1


def test_an_adapter_in_the_models_place_says_where_its_model_is(tmp_path: Path) -> None:
    adapter = write_by_hand(tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"without a model; give --model_path someone/base --adapter {adapter}"):
        open_checkpoint(str(adapter))
