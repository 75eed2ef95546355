"""`layertap inspect`, as a person sees it."""

import dataclasses
import json
import re
from pathlib import Path

import commands
import numpy as np
import outputs
import pytest
from clouds import BUCKET
from fakes.gcs import FakeGcs

from layertap.cli import main
from layertap.core.columns import PREFIX, token_columns
from layertap.core.sample import Sample
from layertap.core.taps import Tap
from layertap.prompts.tokenizer import load_tokenizer

SITES = ("residual", "mlp")
TEXT = "A prompt\nof two lines \u2713"


def look(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 2) -> str:
    assert main(["inspect", *map(str, arguments)]) == status
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def row(text: str, *begins: str) -> list[str]:
    """The cells of the only line that begins with these."""
    (found,) = [cells for cells in map(str.split, text.splitlines()) if cells[: len(begins)] == list(begins)]
    return found


def with_sink(sample: Sample) -> Sample:
    """The sample, with a norm a thousand times the others' at its second token, layer 2,
    residual."""
    activation = sample.activations[Tap(2, "residual")].copy()
    activation[1] *= 1000
    return dataclasses.replace(sample, activations={**sample.activations, Tap(2, "residual"): activation})


@pytest.fixture(params=["pickle", "safetensors"])
def output(request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path) -> Path:
    """Three shards of a run with the tiny model's tokenizer. Sample 3, in shard 2, has a text and a
    sink.
    """
    tokenizer = load_tokenizer(tiny_model)
    contents = outputs.three_shards(SITES)
    (ids,) = tokenizer.encode_batch([TEXT])
    sample = with_sink(outputs.sample(3, len(ids), SITES))
    columns = token_columns(ids, frozenset(outputs.SPECIAL_IDS))
    contents[1][1] = dataclasses.replace(sample, columns=columns, text_preview=TEXT[:4])
    outputs.write(tmp_path / "out", contents, outputs.shard_format(SITES, name=request.param))

    def edit(document):
        document["model_path"] = str(tiny_model)
        document["identity"]["prompts"] = {"tokenizer": tokenizer.digest}

    outputs.edit_manifest(tmp_path / "out", edit)
    return tmp_path / "out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of pickles with one site. There is no tokenizer."""
    outputs.write(tmp_path / "pickles", outputs.three_shards(), outputs.shard_format())
    return tmp_path / "pickles"


# A whole shard


def test_the_first_shard_is_shown_unless_another_is_asked_for(output, capsys):
    assert look(capsys, output).startswith("shard 1 of 3 (the run is complete): 2 samples (0 to 1), 8 tokens\n")
    assert "[tokens, 4]; residual, mlp of layers 0, 2; model " in look(capsys, output)
    assert look(capsys, output, "--shard", "3").startswith("shard 3 of 3 (the run is complete): 2 samples (4 to 5), 8")


def test_every_sample_has_a_line_with_its_shape_and_text(output, tiny_model, capsys):
    text = look(capsys, output, "--shard", "2")
    (ids,) = load_tokenizer(tiny_model).encode_batch([TEXT])
    count = str(len(ids))
    assert row(text, "3", "task1")[:5] == ["3", "task1", count, f"({count},", "4)"]
    assert repr(TEXT) in text
    assert row(text, "2", "task1")[2:5] == ["3", "(3,", "4)"]


def test_every_tap_has_a_line_with_its_norms(output, capsys):
    text = look(capsys, output, "--shard", "1")
    samples = outputs.three_shards(SITES)[0]
    for layer, site in ((0, "residual"), (2, "residual"), (0, "mlp"), (2, "mlp")):
        norms = [np.linalg.norm(sample.activations[Tap(layer, site)].astype(float), axis=1) for sample in samples]
        every = np.concatenate(norms)
        holder = int(norms[1].max() > norms[0].max())
        told = row(text, site, str(layer))
        assert told[2:5] == [f"{number:.5g}" for number in (every.min(), np.median(every), every.max())]
        assert told[5:] == [str(samples[holder].sample_idx), str(int(norms[holder].argmax())), "0", "0"]


def test_sinks_are_counted_where_they_are(output, capsys):
    text = look(capsys, output, "--shard", "2")
    assert row(text, "residual", "2")[5:] == ["3", "1", "1", "0"]
    assert row(text, "residual", "0")[7] == "0"


def test_nan_and_infinity_are_counted_and_do_not_hide_the_rest(tmp_path, capsys):
    first, second = outputs.three_shards()[0]
    first.activations[Tap(2, "residual")][1, 2] = np.nan
    second.activations[Tap(2, "residual")][0, 0] = np.inf
    outputs.write(tmp_path, [[first, second]], outputs.shard_format(keep_nonfinite=True))
    told = row(look(capsys, tmp_path), "residual", "2")
    assert told[-1] == "2"
    assert all(re.fullmatch(r"[0-9.]+", number) for number in told[2:5])


def test_only_the_layers_and_sites_that_are_asked_for_are_read(output, capsys):
    for path in (output / "mlp").rglob("shard_*"):
        path.unlink()
    text = look(capsys, output, "--site", "residual", "--layer", "2")
    assert row(text, "residual", "2")
    assert "residual      0" not in text
    assert "mlp" not in text[text.index("norm") :]
    if (output / "mlp").exists():
        assert "missing" in refused(capsys, output, status=1)


def test_a_long_shard_is_listed_in_part_and_the_rest_is_counted(output, capsys):
    text = look(capsys, output, "--max_samples", "1")
    assert "     0  task0" in text
    assert "     1  task0" not in text
    assert "\n1 more are not shown; --max_samples 0 lists all\n" in text
    assert "     1  task0" in look(capsys, output, "--max_samples", "0")


def test_the_numbers_of_samples_are_said_in_a_few_ranges(tmp_path, capsys):
    scattered = [outputs.sample(number, 1) for number in range(0, 22, 2)]
    outputs.write(tmp_path, [scattered], outputs.shard_format())
    assert "11 samples (0, 2, 4, 6, 8, 10, 12, 14, and 3 more ranges), 11 tokens" in look(capsys, tmp_path)


# One sample


def test_a_sample_is_found_in_its_shard_and_shown_with_its_text(output, capsys):
    text = look(capsys, output, "--sample", "3")
    assert text.startswith("shard 2 of 3")
    assert "sample 3 of task task1: " in text
    assert "origin: {'prediction': 1" in text
    assert f"\n{TEXT}\n" in text


def test_every_token_has_a_line_with_its_text_flags_and_norms(output, tiny_model, capsys):
    text = look(capsys, output, "--sample", "3")
    (ids,) = load_tokenizer(tiny_model).encode_batch([TEXT])
    lines = text.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.split()[:2] == ["token", "id"]) :]
    assert [line.split()[1] for line in table[1 : len(ids) + 1]] == [str(token) for token in ids]
    assert "first" in table[1]
    assert "first" not in table[2]
    activations = with_sink(outputs.sample(3, len(ids), SITES)).activations
    norms = [np.linalg.norm(activations[Tap(layer, site)][1].astype(float)) for site in SITES for layer in (0, 2)]
    marks = ("", "*", "", "")
    assert table[2].split()[-4:] == [f"{norm:.5g}{mark}" for norm, mark in zip(norms, marks, strict=True)]


def test_special_tokens_are_flagged(tmp_path, capsys):
    columns = token_columns(np.array([3, 9, 5], np.int32), {3, 5})
    columns["flags"][0] |= PREFIX
    sample = dataclasses.replace(outputs.sample(0), columns=columns)
    outputs.write(tmp_path, [[sample]], outputs.shard_format())
    text = look(capsys, tmp_path, "--sample", "0")
    assert row(text, "0", "3")[2:5] == ["first", "special", "prefix"]
    assert "3 tokens: 1 first of a sample, 2 special, 1 of the prefix;" in text
    assert row(text, "2", "5")[2] == "special"
    assert "special" not in row(text, "1", "9")


def test_the_middle_of_a_long_sample_is_left_out_and_said_to_be(tmp_path, capsys):
    outputs.write(tmp_path, [[outputs.sample(0, 50)]], outputs.shard_format())
    text = look(capsys, tmp_path, "--sample", "0", "--max_tokens", "5")
    listed = [line.split()[0] for line in text[text.index("\ntoken ") + 1 :].splitlines()[1:7]]
    assert listed == ["0", "1", "2", "⋯", "48", "49"]
    assert "45 tokens in the middle are left out; --max_tokens 0 lists all" in text
    assert "left out" not in look(capsys, tmp_path, "--sample", "0", "--max_tokens", "0")
    assert "left out" not in look(capsys, tmp_path, "--sample", "0", "--max_tokens", "50")


def test_text_cannot_move_the_cursor(tmp_path, capsys):
    sample = dataclasses.replace(outputs.sample(0), text_preview="red \x1b[31m", task_id="task\x07")
    outputs.write(tmp_path, [[sample]], outputs.shard_format())
    for arguments in ((), ("--sample", "0")):
        text = look(capsys, tmp_path, *arguments)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert r"red \x1b[31m" in text


# Without the tokenizer


def test_without_the_tokenizer_the_preview_and_the_ids_are_shown_and_it_is_said_why(folder, capsys):
    text = look(capsys, folder, "--sample", "0")
    assert "at most the first 200 characters" in text
    assert "models/tiny is neither a folder nor a Hub id" in text
    assert "\nprompt 0\n" in text
    first = outputs.sample(0).token_ids[0]
    assert row(text, "0", str(first))[2] == "first"


def test_another_tokenizer_can_be_named_and_is_told_apart(folder, tiny_model, capsys):
    text = look(capsys, folder, "--model_path", tiny_model)
    assert f"decoded by the tokenizer of {tiny_model}, whose files are not those that the run had" in text


def test_the_runs_own_tokenizer_needs_no_remark(output, capsys):
    assert "whose files are not those" not in look(capsys, output)


@pytest.mark.parametrize("output", ["pickle"], indirect=True)
@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_tokenizer_in_the_hubs_cache_is_found(output, tmp_path, tiny_model, revision):
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / revision).write_text("abc")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (snapshot / name).write_bytes((tiny_model / name).read_bytes())
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    model = "someone/tiny" if revision == "main" else f"someone/tiny@{revision}"
    arguments = ["-m", "layertap", "inspect", output, "--shard", "2", "--model_path", model]
    done = commands.run(arguments, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert repr(TEXT) in done.stdout


def test_a_folder_without_a_tokenizer_is_refused_where_it_was_named(folder, tmp_path, capsys):
    assert "tokenizer.json: no such file" in refused(capsys, folder, "--model_path", tmp_path)
    assert "no/where is neither a folder nor a Hub id" in refused(capsys, folder, "--model_path", "no/where")


# What is not there, or damaged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "4"], "--shard 4: there is none; there are shards 1 to 3"),
        (["--shard", "0"], "--shard 0: there is none; there are shards 1 to 3"),
        (["--sample", "6"], "--sample 6: there is none; the shards hold samples 0 to 5"),
        (["--sample", "5", "--shard", "1"], "--shard 1: does not hold sample 5, which is in shard 3"),
        (["--layer", "0", "1"], "--layer 1: not stored here; there are 0, 2"),
        (["--site", "attn"], "--site attn: not stored here; there are residual"),
        (["--max_tokens", "-1"], "--max_tokens must not be negative, but is -1"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(folder, capsys, arguments, message):
    assert message in refused(capsys, folder, *arguments)


def test_a_folder_that_no_run_wrote_and_a_run_without_a_shard_are_refused(tmp_path, capsys):
    assert "is not the output folder of a run" in refused(capsys, tmp_path)
    outputs.write(tmp_path, [[]], outputs.shard_format())
    assert "metadata.json names no shard" in refused(capsys, tmp_path)


def test_a_damaged_file_is_named(output, capsys):
    path = next(path for path in sorted(output.rglob("shard_0001*")) if "statistics" not in path.parts)
    damaged = bytearray(path.read_bytes())
    damaged[9] ^= 1
    path.write_bytes(damaged)
    assert f"{path.relative_to(output).as_posix()}: " in refused(capsys, output, status=1)
    assert look(capsys, output, "--shard", "2")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda shard: shard[0][1].update(activation=np.zeros(3, np.float32)), "sample 1: activation is float32 [3]"),
        (lambda shard: shard[2].pop(), "layer 2 holds other samples or tokens"),
        (lambda shard: shard.pop(2), "holds layers [0], should hold [0, 2]"),
        (lambda shard: [entries.clear() for entries in shard.values()], "holds samples none, should hold 0 to 1"),
    ],
)
def test_what_should_not_be_in_a_shard_is_named_and_verify_recommended(folder, capsys, edit, message):
    outputs.rewrite(folder, "shard_0001.pkl.gz", edit)
    errors = refused(capsys, folder, status=1)
    assert message in errors
    assert "`layertap verify`" in errors


# Where, and at what cost


def test_a_shard_in_a_bucket_is_shown_as_in_a_folder(output: Path, gcs: FakeGcs, capsys) -> None:
    for path in output.rglob("*"):
        if path.is_file():
            gcs.put(BUCKET, f"run/tpu_0/{path.relative_to(output).as_posix()}", path.read_bytes())
    arguments = ("--sample", "3")
    assert look(capsys, f"gs://{BUCKET}/run/tpu_0", *arguments) == look(capsys, output, *arguments)


def test_it_starts_without_jax(folder, tmp_path):
    program = "import sys; from layertap.cli import main; sys.exit(main(sys.argv[1:]) or 'jax' in sys.modules)"
    assert commands.run(["-c", program, "inspect", folder], tmp_path).returncode == 0


@pytest.fixture
def labelled(output: Path) -> Path:
    """The same shards, with labels for sample 3: a template, and the opening and two cells of a
    grid.
    """
    contents = outputs.three_shards(SITES)
    columns = contents[1][1].columns
    columns["role"][:] = [0, 3, 3, 3]
    columns["example"][1:], columns["side"][1:] = (-2, 0, 0), (2, 1, 1)
    columns["row"][2:], columns["col"][2:], columns["colours"][2:], columns["cells"][2:] = (
        (4, 4),
        (0, 1),
        (7, 21),
        (1, 2),
    )
    place = output.parent / "labelled"
    outputs.write(place, contents, outputs.shard_format(SITES))
    return place


def test_labels_are_shown_where_there_are_any(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = look(capsys, labelled, "--sample", "3")
    for told in ("template", "user  test output", "user  train 0 input 4,0: 7", "user  train 0 input 4,1: 1 2"):
        assert told in re.sub(r" {2,}", "  ", text)
    plain = look(capsys, labelled, "--sample", "0")
    assert " role " not in plain
    assert " cell " not in plain


def test_as_json_every_token_is_told(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(look(capsys, labelled, "--json", "--shard", "2"))
    assert [sample["tokens"] for sample in whole["samples"]] == [3, 4]
    assert [(tap["site"], tap["layer"]) for tap in whole["taps"]] == [
        (site, layer) for site in SITES for layer in (0, 2)
    ]
    assert (whole["shard"], whole["shards"], whole["complete"], whole["keep_tokens"]) == (2, 3, True, ["all"])
    (sample,) = json.loads(look(capsys, labelled, "--json", "--sample", "3"))["samples"]
    assert [token["position"] for token in sample["tokens"]] == [0, 1, 2, 3]
    assert sample["tokens"][0]["flags"][0] == "first"
    assert sample["tokens"][3]["labels"] == {
        "role": "user", "example": 0, "side": "input", "row": 4, "col": 1, "colours": [1, 2],
    }  # fmt: skip
    assert sample["tokens"][1]["labels"]["example"] == "test"
    assert sample["tokens"][1]["labels"]["row"] is None
    assert [tap["norm"] > 0 for tap in sample["tokens"][0]["taps"]] == [True] * 4


def test_as_json_a_nan_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = outputs.three_shards()[0]
    samples[0].activations[Tap(2, "residual")][:] = np.nan
    samples[1].activations[Tap(2, "residual")][:] = np.nan
    outputs.write(tmp_path, [samples], outputs.shard_format(keep_nonfinite=True))
    text = look(capsys, tmp_path, "--json", "--sample", "0")
    assert "NaN" not in text
    told = json.loads(text)
    assert told["samples"][0]["tokens"][0]["taps"][1]["norm"] is None
    assert (told["taps"][1]["largest"], told["taps"][1]["nonfinite"]) == (None, 3)
