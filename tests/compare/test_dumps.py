"""Every kind of dump is recognised by its content, and only what is compared is read."""

import json
import pickle
import shutil
from pathlib import Path

import datasets
import dumps
import ml_dtypes
import numpy as np
import pytest
import torch

from layertap.api.extraction import extract
from layertap.compare.command import Comparison, compare
from layertap.config.compare import CompareConfig
from layertap.errors import DumpError, UsageError


@pytest.fixture(scope="module")
def batch(tiny_model: Path, prompts: list[np.ndarray]) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Two samples of 25 tokens in a table, and their `hidden_states` without the last one."""
    ids = np.stack([prompt[:25] for prompt in prompts])
    return ids, dumps.hidden_states(tiny_model, ids)[:-1]


@pytest.fixture
def look_at(tiny_model: Path):
    def run(path: Path, **flags: object) -> Comparison:
        return compare(CompareConfig(str(path), model_path=str(tiny_model), **flags))

    return run


def layers(comparison: Comparison) -> list[int]:
    """Return which layer each array is from; -1 means the embeddings. All arrays must be right."""
    assert comparison.sound, [one.verdict.words for one in comparison.findings]
    candidates = [one.diagnosis.best.candidate for one in comparison.findings]
    return [-1 if one.tap.site == "residual_in" else one.tap.layer for one in candidates]


SHAPES = {
    "batch, tokens, layers, width": lambda states: torch.stack(states, 2),
    "layers, batch, tokens, width": lambda states: torch.stack(states),
    "batch, layers, tokens, width": lambda states: torch.stack(states, 1),
    "tokens, batch, layers, width": lambda states: torch.stack(states, 2).transpose(0, 1),
    "all tokens, layers, width": lambda states: torch.stack(states, 2).flatten(0, 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_axes_of_a_batch(shape: str, batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    path = dumps.save(tmp_path / "dump.safetensors", input_ids=ids, acts=SHAPES[shape](states))
    assert layers(look_at(path)) == [-1, 0, 1, 2]


@pytest.mark.parametrize("form", ["tokens first", "layers first", "one in a batch", "heads apart"])
def test_the_axes_of_one_row(form: str, batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    one = states[2][0]
    array = {
        "tokens first": torch.stack([one, states[3][0]], 1),
        "layers first": torch.stack([one, states[3][0]]),
        "one in a batch": one[None],
        "heads apart": one.reshape(25, 4, 16),
    }[form]
    path = dumps.save(tmp_path / "dump.safetensors", tokens=ids[0], acts=array)
    assert layers(look_at(path)) == ([1, 2] if "first" in form else [1])


def test_a_npz(batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    np.savez(tmp_path / "dump.npz", token_ids=ids, layer_1=states[2].numpy(), other=np.zeros((3, 2)))
    found = look_at(tmp_path / "dump.npz")
    assert layers(found) == [1]
    assert found.dump.remarks == ["not compared, for want of a row for each token: other"]


def test_a_npy_with_ids_beside_it(batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    np.save(tmp_path / "acts.npy", states[2].numpy())
    with pytest.raises(DumpError, match=r"has no token ids.*--token_ids"):
        look_at(tmp_path / "acts.npy")
    np.save(tmp_path / "input_ids.npy", ids)
    assert layers(look_at(tmp_path / "acts.npy")) == [1]
    assert layers(look_at(tmp_path)) == [1]


def test_a_npy_of_bfloat16(batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    np.save(tmp_path / "acts.npy", states[2].numpy().astype(ml_dtypes.bfloat16))
    np.save(tmp_path / "tokens.npy", ids)
    found = look_at(tmp_path / "acts.npy")
    assert layers(found) == [1]
    assert "rounded to bfloat16 to be stored" in found.findings[0].verdict.words


@pytest.mark.parametrize("ragged", [False, True])
def test_token_ids_of_a_file_of_their_own(
    batch, look_at, tiny_model: Path, prompts: list[np.ndarray], tmp_path: Path, ragged: bool
) -> None:
    ids, states = batch
    if ragged:
        outputs = [dumps.layer_outputs(tiny_model, prompt[None])[1][0] for prompt in prompts]
        path = dumps.save(tmp_path / "dump.safetensors", acts=torch.cat(outputs))
    else:
        path = dumps.save(tmp_path / "dump.safetensors", acts=states[2])
    listed = [row.tolist() for row in (prompts if ragged else ids)]
    (tmp_path / "ids.json").write_text(json.dumps(listed))
    assert layers(look_at(path, token_ids=str(tmp_path / "ids.json"))) == [1]


def test_files_of_vllm(batch, look_at, tmp_path: Path) -> None:
    """`hs_N.safetensors`, one for each request: layer id k is the output of k layers, without the
    norm.
    """
    ids, states = batch
    for number in (0, 1, 10):
        row = number % 2
        chosen = torch.stack([states[layer][row] for layer in (1, 3)], 1)
        dumps.save(tmp_path / f"hs_{number}.safetensors", hidden_states=chosen, token_ids=ids[row].astype(np.int64))
    found = look_at(tmp_path)
    assert layers(found) == [0, 2]
    assert len(found.dump.prompts) == 3
    np.testing.assert_array_equal(found.dump.prompts[2].token_ids, ids[0])


def test_cached_activations_of_saelens(batch, look_at, tmp_path: Path) -> None:
    """The layout of `CacheActivationsRunner` of sae-lens 6.54: two files, with `features`."""
    ids, states = batch
    hook = "blocks.1.hook_resid_post"
    features = datasets.Features(
        {
            hook: datasets.Array2D(shape=(25, 64), dtype="float32"),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=25),
        }
    )
    rows = {hook: states[2].numpy(), "token_ids": ids.astype(np.int32)}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "cached"), num_shards=2)
    found = look_at(tmp_path / "cached")
    assert layers(found) == [1]
    assert found.dump.kind == "cached activations of SAELens"
    assert len(found.dump.prompts) == 2
    assert len(look_at(tmp_path / "cached", max_samples=1).dump.prompts) == 1


@pytest.mark.whole
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_our_own_output(form: str, tiny_model: Path, few_tasks: Path, look_at, tmp_path: Path) -> None:
    extract(
        dataset_path=few_tasks,
        model_path=tiny_model,
        layers_to_extract=[1, 3],
        activation_type=["residual", "mlp_in"],
        output_dir=tmp_path / "activations",
        checkpoint_dir=tmp_path / "checkpoints",
        format=form,
        compute_dtype="bfloat16",
        max_tasks=2,
        predictions_per_task=1,
    )
    found = look_at(tmp_path / "activations", max_samples=2, max_tokens=32)
    assert layers(found) == [1, 1, 3, 3]
    assert {one.diagnosis.best.rounding.grid for one in found.findings} == {"bfloat16"}


def test_no_more_is_compared_than_was_asked_for(batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    path = dumps.save(tmp_path / "dump.safetensors", token_ids=ids, acts=states[2])
    found = look_at(path, max_samples=1, max_tokens=7)
    assert layers(found) == [1]
    assert [len(errors) for errors in found.findings[0].diagnosis.best.errors] == [7]


def test_less_is_compared_where_the_context_is_short(tiny_model: Path, prompts, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64 + 30}))
    output = dumps.layer_outputs(tiny_model, prompts[0][None])[2][0]
    path = dumps.save(tmp_path / "dump.safetensors", token_ids=prompts[0], acts=output)
    found = compare(CompareConfig(str(path), model_path=str(short)))
    assert layers(found) == [2]
    assert found.dump.remarks[0].startswith("the first 30 tokens of each sample are compared")


@pytest.mark.whole
def test_candidates_can_be_fewer(batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    path = dumps.save(tmp_path / "dump.safetensors", token_ids=ids, acts=states[2])
    assert layers(look_at(path, layers=(1, 2), sites=("residual", "mlp"))) == [1]
    assert not look_at(path, layers=(3,), sites=("residual",)).sound
    (other,) = look_at(path, sites=("neurons",)).findings
    assert other.verdict.words == "none of the sites that it may be of is 64 wide: give other --sites"
    with pytest.raises(UsageError, match=r"--layers 4: .* has layers 0 to 3"):
        look_at(path, layers=(4,))


class _Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "npy", "npz"])
def test_nothing_is_unpickled(kind: str, look_at, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"dump.{kind}"
    objects = np.array([_Evil()], dtype=object)
    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps({"token_ids": _Evil()}))
        case "torch":
            torch.save({"acts": torch.zeros(3), "more": _Evil()}, path)
        case "npy":
            np.save(path, objects, allow_pickle=True)
        case "npz":
            np.savez(path, allow_pickle=True, acts=objects)
    with pytest.raises(DumpError, match=r"pickle|torch\.save"):
        look_at(path)
    assert not (tmp_path / "pwned").exists()


def test_what_is_no_dump_is_refused(batch, look_at, tmp_path: Path) -> None:
    ids, states = batch
    text = tmp_path / "notes.txt"
    text.write_text("nothing to see")
    with pytest.raises(DumpError, match=r"is not safetensors, \.npy or \.npz"):
        look_at(text)
    with pytest.raises(DumpError, match="no such file or folder"):
        look_at(tmp_path / "absent")
    path = dumps.save(tmp_path / "short.safetensors", token_ids=ids[0], acts=torch.zeros(7, 64))
    with pytest.raises(DumpError, match=r"with a row for each of the 25 tokens.*acts float32\[7, 64\]"):
        look_at(path)
    path = dumps.save(tmp_path / "beyond.safetensors", token_ids=ids + 10_000, acts=states[2])
    with pytest.raises(DumpError, match=r"token id \d+ does not belong to .*, which has 0 to 767"):
        look_at(path)
    path = dumps.save(tmp_path / "floats.safetensors", token_ids=ids.astype(np.float32), acts=states[2])
    with pytest.raises(DumpError, match="has no token ids"):
        look_at(path)
    np.savez(tmp_path / "whole.npz", token_ids=ids)
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:200])
    with pytest.raises(DumpError, match=r"is not a whole \.npz file"):
        look_at(tmp_path / "half.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DumpError, match="is not a whole safetensors file"):
        look_at(path)
