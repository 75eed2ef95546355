import json
import shutil
from pathlib import Path

import outputs
import pytest
import shards

from layertap.check.places import verify_places
from layertap.check.verify import verify
from layertap.cli import main
from layertap.errors import DamageError, UsageError
from layertap.objects.files import TEMPORARY

FIRST, SECOND, THIRD = (f"shard_000{number}.pkl.gz" for number in (1, 2, 3))
TWO_SITES = ("residual", "mlp")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sites", [("residual",), ("attn",), TWO_SITES])
@pytest.mark.parametrize("compress", [False, True])
def test_what_was_just_written_is_sound(tmp_path, dtype, sites, compress):
    outputs.write(tmp_path, outputs.three_shards(sites), outputs.shard_format(sites, dtype, compress))
    report = verify(tmp_path)
    assert report.findings == ()
    assert (
        report.describe() == f"{tmp_path}: complete; 3 shards, 6 samples, 23 tokens, every file read back and checked"
    )


def test_an_unfinished_run_is_said_to_be_so(folder):
    outputs.edit_manifest(folder, lambda document: document.update(complete=False))
    assert verify(folder).describe().startswith(f"{folder}: sound so far, the run is not complete; 3 shards")


def test_a_run_without_a_sample_is_sound(tmp_path):
    outputs.write(tmp_path, [[]], outputs.shard_format())
    assert outputs.findings(tmp_path) == []


def test_a_folder_that_no_run_wrote_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"metadata\.json: no such file; .* is not the output folder of a run"):
        verify(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no such file"):
        verify(tmp_path / "file")


# Damage to files


def test_a_flipped_bit_is_found(folder):
    damaged = bytearray((folder / SECOND).read_bytes())
    damaged[100] ^= 4
    (folder / SECOND).write_bytes(damaged)
    assert outputs.the_finding(folder).startswith(f"{SECOND}: has CRC-32C ")


def test_a_truncated_file_is_found(folder):
    whole = (folder / THIRD).read_bytes()
    (folder / THIRD).write_bytes(whole[:-7])
    assert outputs.the_finding(folder) == f"{THIRD}: has {len(whole) - 7} bytes, should have {len(whole)}"


def test_a_missing_file_is_found(folder):
    (folder / FIRST).unlink()
    assert outputs.the_finding(folder) == f"{FIRST}: missing"


def test_a_folder_in_the_place_of_a_file_is_found(folder):
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()
    assert outputs.the_finding(folder) == f"{FIRST}: missing"


def test_a_file_that_cannot_be_read_is_found(folder, monkeypatch):
    def failing(path, *arguments):
        if path.name == SECOND:
            raise OSError(5, "Input/output error")
        return opened(path, *arguments)

    opened = Path.open
    monkeypatch.setattr(Path, "open", failing)
    assert outputs.the_finding(folder) == f"{SECOND}: cannot be read: Input/output error"


@pytest.mark.parametrize("name", ["shard_0004.pkl.gz", "mlp/shard_0001.pkl.gz", "shard_0002.pkl"])
def test_an_extra_shard_is_found(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / FIRST, folder / name)
    assert outputs.the_finding(folder) == f"{name}: not named by metadata.json"


def test_other_files_in_the_folder_are_the_users_own(folder):
    (folder / "notes.txt").touch()
    assert outputs.findings(folder) == []


def test_what_a_killed_run_leaves_is_no_damage(two_sites):
    (two_sites / "mlp" / f"shard_0002.pkl.gz{TEMPORARY}").write_bytes(b"half")
    assert outputs.findings(two_sites) == []
    outputs.edit_manifest(two_sites, lambda document: document.update(complete=False))
    (two_sites / "residual" / "shard_0004.pkl.gz").write_bytes(b"whole, but without a manifest that names it")
    assert outputs.findings(two_sites) == []
    (two_sites / "mlp" / "shard_0005.pkl.gz").write_bytes(b"as many of them as there are")
    assert outputs.findings(two_sites) == []
    (two_sites / "mlp" / "shard_0003.pkl").write_bytes(b"no kill leaves this")
    assert outputs.the_finding(two_sites) == "mlp/shard_0003.pkl: not named by metadata.json"


def test_swapped_files_are_found(folder):
    (folder / FIRST).rename(folder / "kept")
    (folder / SECOND).rename(folder / FIRST)
    (folder / "kept").rename(folder / SECOND)
    assert [finding.split(":")[0] for finding in outputs.findings(folder)] == [FIRST, SECOND]


def test_swapped_files_are_found_by_their_content_too(folder):
    (folder / FIRST).rename(folder / "kept")
    (folder / SECOND).rename(folder / FIRST)
    (folder / "kept").rename(folder / SECOND)
    for name in (FIRST, SECOND):
        outputs.believe(folder, name)
    assert f"{FIRST}: holds samples 2 to 3, should hold 0 to 1" in outputs.findings(folder)
    assert f"{SECOND}: holds samples 0 to 1, should hold 2 to 3" in outputs.findings(folder)


def test_every_damaged_shard_is_reported(folder):
    (folder / FIRST).unlink()
    (folder / SECOND).write_bytes(b"")
    outputs.rewrite(folder, THIRD, lambda shard: shard.pop(2))
    report = verify(folder)
    assert [finding.split(":")[0] for finding in report.findings] == [FIRST, SECOND, THIRD]
    header, *lines = report.describe().splitlines()
    assert header == f"{folder}: DAMAGED; 3 findings in 3 shards, 6 samples, 23 tokens:"
    assert tuple(lines) == report.findings


# Damage to the manifest


def taps(**changed):
    """Return what the manifest says about the taps, with this change."""
    return [{"site": "residual", "width": outputs.HIDDEN, "layers": list(outputs.LAYERS)} | changed]


@pytest.mark.parametrize(
    ("field", "value", "finding"),
    [
        ("samples", 3, f"{SECOND}, layer 0: holds 2 samples, should hold 3"),
        ("tokens", 8, f"{SECOND}: holds 7 tokens, should hold 8"),
        ("sample_idx", [[2, 2]], f"{SECOND}: holds samples 2 to 3, should hold 2"),
        ("sample_idx", [], f"{SECOND}: holds samples 2 to 3, should hold none"),
        ("index", 7, "shard 7: is in metadata.json where shard 2 should be"),
    ],
)
def test_an_edited_shard_entry_is_found(folder, field, value, finding):
    outputs.edit_manifest(folder, lambda document: document["shards"][1].update({field: value}))
    assert outputs.the_finding(folder) == finding


@pytest.mark.parametrize(
    ("field", "value", "finding"),
    [
        (
            "taps",
            taps(width=8),
            "should be float32 [3, 8]",
        ),
        (
            "storage_dtype",
            "float16",
            "activation is float32 [3, 4], with shape=[3, 4], should be float16",
        ),
        ("taps", taps(layers=[0, 1]), "holds layers [0, 2], should hold [0, 1]"),
        ("taps", taps(layers=[2, 0]), "holds layers [0, 2], should hold [2, 0]"),
        ("taps", taps(site="mlp"), "shard 1: has files of residual, statistics; should have mlp, statistics"),
        ("columns", {"token_ids": "int32", "flags": "uint8", "roles": "u1"}, "roles is missing or not one u1 a token"),
    ],
)
def test_an_edited_header_is_found(folder, field, value, finding):
    outputs.edit_manifest(folder, lambda document: document.update({field: value}))
    assert any(finding in found for found in outputs.findings(folder))


def test_a_shard_taken_out_of_the_middle_is_found(folder):
    outputs.edit_manifest(folder, lambda document: document["shards"].pop(1))
    assert outputs.findings(folder) == [
        f"{SECOND}: not named by metadata.json",
        "statistics/shard_0002.safetensors: not named by metadata.json",
        "shard 3: is in metadata.json where shard 2 should be",
    ]


def test_a_site_taken_out_of_a_shard_is_found_though_its_file_is_gone_too(two_sites):
    (two_sites / "mlp" / FIRST).unlink()
    outputs.edit_manifest(two_sites, lambda document: document["shards"][0]["files"].pop(1))
    assert outputs.the_finding(two_sites) == (
        "shard 1: has files of residual, statistics; should have residual, mlp, statistics"
    )


def test_a_manifest_that_is_none_is_refused(folder):
    (folder / "metadata.json").write_text("{}")
    with pytest.raises(DamageError, match="is not a Layertap manifest"):
        verify(folder)


def test_the_manifest_is_left_alone(folder):
    before = shards.contents(folder)
    verify(folder)
    assert shards.contents(folder) == before


# The command


def test_the_command_prints_json_and_its_exit_status_tells(folder, capsys):
    assert main(["verify", "--json", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(folder),
        "sound": True,
        "complete": True,
        "empty": False,
        "nonfinite": 0,
        "shards": 3,
        "samples": 6,
        "tokens": 23,
        "relabelled": 0,
        "findings": [],
    }
    (folder / FIRST).unlink()
    assert main(["verify", "--json", str(folder)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["sound"], told["findings"]) == (False, [f"{FIRST}: missing"])


def test_progress_is_told_in_bytes_and_ends_with_all_of_them(two_sites):
    told = []
    verify(two_sites, lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for path in two_sites.rglob("shard_*"))
    assert len(told) == 9
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_what_is_no_terminal_gets_no_progress_bar(folder, capsys):
    main(["verify", str(folder)])
    assert capsys.readouterr().err == ""


def test_a_run_that_extracted_nothing_is_said_to_be_empty_also_among_others(tmp_path: Path) -> None:
    form = outputs.shard_format()
    outputs.write(tmp_path / "full", outputs.three_shards(), form)
    outputs.write(tmp_path / "none", [[]], form)
    empty = verify(tmp_path / "none")
    assert empty.sound
    assert empty.describe() == f"{tmp_path / 'none'}: complete, and EMPTY: it holds no sample"
    places = [str(tmp_path / name) for name in ("full", "none")]
    said = verify_places(str(tmp_path), places).describe()
    assert said.splitlines()[0] == f"{tmp_path / 'none'}: is complete, and EMPTY: it holds no sample"
    assert said.count("EMPTY") == 1
