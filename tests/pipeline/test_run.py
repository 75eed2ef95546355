"""Whole runs in this process: what they write, where they stop, how they continue."""

import json
import threading
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import huggingface
import numpy as np
import pytest
import shards
from runs import changed, finished, lines, manifest, out

from layertap.check.verify import verify
from layertap.config.extract import ExtractConfig
from layertap.core.taps import Tap
from layertap.errors import BadTaskError, ModelError, StorageError
from layertap.pipeline import backend
from layertap.pipeline.run import extract
from layertap.pipeline.step import StepProgram


def test_every_sample_is_written_once_with_its_own_tokens(config: ExtractConfig) -> None:
    summary = extract(config)
    found = shards.samples(out(config), layer=1)
    assert sorted(found) == list(range(summary.samples))
    assert len(manifest(config)["shards"]) > 3
    for entry in found.values():
        assert entry["activation"].shape == entry["shape"] == (len(entry["token_ids"]), 64)
        assert entry["activation"].dtype == np.float32
    assert len({entry["task_id"] for entry in found.values()}) == 5
    assert verify(out(config)).sound


def test_activations_are_those_of_transformers(config: ExtractConfig, tiny_model: Path) -> None:
    exact = changed(config, compute_dtype="float32", max_tasks=2, activation_type=("residual", "mlp", "attn"))
    extract(exact)
    sites = ("residual", "mlp", "attn")
    found = {Tap(layer, site): shards.samples(out(exact) / site, layer) for site in sites for layer in (1, 3)}
    for index, sample in found[Tap(1, "residual")].items():
        truth = huggingface.activations(tiny_model, sample["token_ids"].tolist())
        for tap, samples in found.items():
            assert huggingface.relative_errors(samples[index]["activation"], truth[tap]).max() <= 1e-4


def test_on_a_cpu_one_row_is_a_step_unless_more_are_asked_for(config: ExtractConfig) -> None:
    extract(changed(config, batch_size=None))
    assert manifest(config)["identity"]["packing"]["batch_size"] == 1
    assert manifest(config)["config"]["batch_size"] == 1
    assert backend.usual_batch_size("tpu") == 4


def test_the_outputs_of_two_steps_are_in_memory_at_most(config: ExtractConfig, monkeypatch) -> None:
    outputs: list[weakref.ref[Any]] = []
    before: list[int] = []
    dispatch = StepProgram.dispatch

    def watched(self: StepProgram, *arguments: Any) -> Any:
        before.append(sum(output() is not None for output in outputs))
        flight = dispatch(self, *arguments)
        outputs.append(weakref.ref(flight[0]))
        return flight

    monkeypatch.setattr(StepProgram, "dispatch", watched)
    extract(config)
    assert len(before) > 3
    assert max(before) == 1


def test_shards_stay_below_their_size_and_the_manifest_names_each(config: ExtractConfig) -> None:
    finished(config)
    for shard in manifest(config)["shards"]:
        assert shard["tokens"] * 2 * 64 * 4 <= 1_000_000 or shard["samples"] == 1
        for file in shard["files"]:
            assert (out(config) / file["path"]).stat().st_size == file["bytes"]


def test_the_same_run_twice_gives_the_same_bytes(config: ExtractConfig, tmp_path: Path, monkeypatch) -> None:
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        extract(changed(config, output_dir="out", checkpoint_dir="checkpoints"))
        written.append(shards.contents(tmp_path / name))
    assert len(written[0]) > 4
    # the checkpoint alone says where its output is
    checkpoints = [json.loads(files.pop("checkpoints/checkpoint_worker_0.json")) for files in written]
    assert checkpoints[0] == checkpoints[1] | {"output_dir": checkpoints[0]["output_dir"]}
    assert written[0] == written[1]


@pytest.mark.whole
def test_machines_share_the_dataset_and_agree_on_numbers(config: ExtractConfig, tmp_path: Path) -> None:
    finished(config)
    whole = shards.samples(out(config), layer=3)
    union: dict[int, Any] = {}
    for machine in range(3):
        share = changed(
            config, machine_id=machine, total_machines=3, worker_id=machine, output_dir=str(tmp_path / f"m{machine}")
        )
        extract(share)
        part = shards.samples(out(share), layer=3)
        assert part
        assert not union.keys() & part.keys()
        union |= part
    assert union.keys() == whole.keys()
    for index, entry in whole.items():
        assert union[index]["task_id"] == entry["task_id"]
        assert np.array_equal(union[index]["token_ids"], entry["token_ids"])
        error = huggingface.relative_errors(union[index]["activation"], entry["activation"])
        assert error.max() < 0.05  # bfloat16 products in rows of other lengths


def with_bad_line(config: ExtractConfig, tmp_path: Path, number: int) -> tuple[ExtractConfig, Path, list[str]]:
    tasks = lines(config.dataset_path)
    path = tmp_path / "bad.jsonl"
    ragged = json.loads(tasks[number])
    ragged["train"][0]["input"][0].append(1)
    path.write_text("\n".join([*tasks[:number], json.dumps(ragged), *tasks[number + 1 :]]) + "\n")
    return changed(config, dataset_path=str(path)), path, tasks


@pytest.mark.whole
def test_a_bad_task_stops_the_run_before_its_window_and_a_repair_goes_on(config: ExtractConfig, tmp_path: Path) -> None:
    bad, path, tasks = with_bad_line(config, tmp_path, 4)
    with pytest.raises(BadTaskError) as raised:
        extract(bad)
    for part in ("bad.jsonl", "line 5", json.loads(tasks[4])["task_id"], "row"):
        assert part in str(raised.value)
    committed = manifest(bad)
    assert committed["shards"]
    assert not committed["complete"]
    assert all(last < 4 * 4 for shard in committed["shards"] for _, last in shard["sample_idx"])
    assert not list(out(bad).rglob("*.partial"))
    path.write_text("\n".join(tasks) + "\n")
    extract(bad)
    extract(changed(config, output_dir=str(tmp_path / "plain"), checkpoint_dir=str(tmp_path / "plain_ck")))
    repaired, plain = shards.contents(out(bad)), shards.contents(tmp_path / "plain")
    del repaired["metadata.json"], plain["metadata.json"]
    assert repaired == plain


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(config: ExtractConfig, tmp_path: Path) -> None:
    bad, _, _ = with_bad_line(config, tmp_path, 0)
    bad = changed(bad, output_dir=str(tmp_path / "runs" / "first"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadTaskError):
        extract(bad)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "runs").mkdir()
    with pytest.raises(BadTaskError):
        extract(bad)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "runs"])


def test_a_bad_task_can_be_skipped_and_is_listed(config: ExtractConfig, tmp_path: Path) -> None:
    bad, _, tasks = with_bad_line(config, tmp_path, 3)
    extract(changed(bad, on_bad_task="skip"))
    skipped = manifest(bad)["progress"]["skipped_tasks"]
    assert skipped["count"] == 1
    assert skipped["list"][0]["task_id"] == json.loads(tasks[3])["task_id"]
    assert "line 4" in skipped["list"][0]["where"]
    found = shards.samples(out(bad), layer=1)
    assert sorted(found) == list(range(len(found)))


@pytest.mark.parametrize("cause", ["a bad first task", "a first Ctrl-C"])
def test_a_run_that_ends_while_weights_load_does_not_wait_for_them(
    config: ExtractConfig, tmp_path: Path, monkeypatch, cause: str
) -> None:
    stopped: list[bool] = []

    def load(*arguments: Any) -> None:
        """Load until abandoned, or for minutes: a busy machine may need many seconds to get that
        far.
        """
        given = (argument for argument in arguments if isinstance(argument, threading.Event))
        stopped.append(next(given, threading.Event()).wait(250))
        raise CancelledError

    def interrupt(*_: Any) -> None:
        """Interrupt this thread as the handler of Ctrl-C does; the signal itself may be ignored
        here.
        """
        raise KeyboardInterrupt

    bad, _, _ = with_bad_line(config, tmp_path, 0)
    monkeypatch.setattr("layertap.model.weights.load", load)
    monkeypatch.setattr(StepProgram, "compile", interrupt)
    with pytest.raises(KeyboardInterrupt if cause == "a first Ctrl-C" else BadTaskError):
        extract(config if cause == "a first Ctrl-C" else bad)
    assert stopped == [True]
    assert not any(thread.name.startswith("loading") for thread in threading.enumerate())


@pytest.mark.whole
def test_overlong_samples_can_be_skipped_or_cut_at_their_end(config: ExtractConfig, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": "one two three " * (100 * n + 1)}) + "\n" for n in range(6)))
    config = changed(config, dataset_path=str(path))
    finished(config)
    whole = shards.samples(out(config), layer=1)
    longer = {index for index, entry in whole.items() if len(entry["token_ids"]) > 700}
    assert 0 < len(longer) < len(whole)
    for overlong, done in (("skip", "skipped"), ("truncate", "truncated")):
        limited = changed(config, max_seq_length=700, overlong=overlong, output_dir=str(tmp_path / overlong))
        said = extract(limited).describe()
        assert " 0.0 s" not in said.split("waited for ")[1].splitlines()[0]
        assert f"\n{done} {len(longer)} samples longer than --max_seq_length; metadata.json lists them\n" in said
        listed = manifest(limited)["progress"]["overlong_samples"]
        assert listed["count"] == len(longer)
        assert {(entry["sample_idx"], entry["action"]) for entry in listed["list"]} == {(n, done) for n in longer}
        found = shards.samples(out(limited), layer=1)
        assert found.keys() == (whole.keys() - longer if overlong == "skip" else whole.keys())
        for index, entry in found.items():
            assert np.array_equal(entry["token_ids"], whole[index]["token_ids"][:700])


def test_an_impossible_layer_is_refused_with_the_range(config: ExtractConfig) -> None:
    with pytest.raises(ModelError, match=r"--layers_to_extract 4 9: .* has layers 0 to 3"):
        extract(changed(config, layers_to_extract=(1, 4, 9)))


def test_plain_text_is_extracted_as_it_stands(config: ExtractConfig, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"Document number {number}, in words."}) + "\n" for number in range(7)))
    text = changed(config, dataset_path=str(path))
    assert extract(text).samples == 7
    assert shards.samples(out(text), layer=1)[3]["text_preview"] == "Document number 3, in words."


@pytest.mark.parametrize(
    "changes", [{"storage_dtype": "float16"}, {"storage_dtype": "bfloat16", "compress_shards": False}]
)
def test_other_dtypes_and_uncompressed_shards_hold_the_same_values(
    config: ExtractConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    finished(config)
    other = changed(config, output_dir=str(tmp_path / "other"), **changes)
    extract(other)
    exact, rounded = shards.samples(out(config), 3), shards.samples(out(other), 3)
    assert exact.keys() == rounded.keys()
    for index, entry in exact.items():
        assert rounded[index]["activation"].dtype.name == changes["storage_dtype"]
        assert np.allclose(entry["activation"], rounded[index]["activation"].astype(np.float32), rtol=1e-2, atol=1e-4)


def test_safetensors_hold_the_same_values_in_bfloat16(config: ExtractConfig, tmp_path: Path) -> None:
    finished(config)
    tensors = changed(config, format="safetensors", output_dir=str(tmp_path / "tensors"))
    extract(tensors)
    assert manifest(tensors)["storage_dtype"] == manifest(tensors)["config"]["storage_dtype"] == "bfloat16"
    assert verify(out(tensors)).sound
    pickled, found = shards.samples(out(config), 3), shards.tensor_samples(out(tensors), "residual.3")
    assert found.keys() == pickled.keys()
    for index, entry in pickled.items():  # the run is in bfloat16, which float32 holds exactly
        assert found[index]["activations"].dtype.name == "bfloat16"
        assert np.array_equal(entry["activation"], found[index]["activations"].astype(np.float32))
        assert np.array_equal(entry["token_ids"], found[index]["token_ids"])
        assert np.array_equal(entry["flags"], found[index]["flags"])


def test_flags_mark_the_first_token_and_the_tokenizers_special_ones(config: ExtractConfig) -> None:
    finished(config)
    special = manifest(config)["special_ids"]
    assert special
    marked = 0
    for entry in shards.samples(out(config), 1).values():
        assert (entry["flags"] & 1).tolist() == [1] + [0] * (len(entry["flags"]) - 1)
        assert np.array_equal((entry["flags"] & 2) > 0, np.isin(entry["token_ids"], special))
        marked += np.count_nonzero(entry["flags"] & 2)
    assert marked


def test_a_second_run_in_the_same_folder_waits_outside(config: ExtractConfig) -> None:
    from layertap.objects.folder_lock import exclusive

    with exclusive(out(config)), pytest.raises(StorageError, match="another run is writing here"):
        extract(config)
