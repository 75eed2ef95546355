"""Open a dump; detect its kind from the content.

    safetensors       a file, or a folder of files with ids in each (vLLM's hs_0.safetensors, ...)
    .npz              a file with token ids in it
    .npy              a file with token ids beside it, or a folder of them
    SAELens           the folder of cached activations
    Layertap          an output folder, or a URL of one

A pickle is always refused, because reading one executes code in it.
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from layertap.compare.arrange import Stored, arrays_of
from layertap.compare.candidates import ModelFacts
from layertap.compare.dump import Dump, DumpArray, Limits, Prompt
from layertap.compare.prompts import IDS, NAMED, find_ids, id_table
from layertap.compare.stored_arrow import is_saved_dataset, open_saved_dataset
from layertap.compare.stored_layertap import open_output
from layertap.compare.stored_numpy import open_npy, open_npz
from layertap.compare.stored_safetensors import open_tensors
from layertap.errors import DumpError

_FLOATS = {"float16", "bfloat16", "float32", "float64"}
_HEAD = 16


def open_dump(path: str, token_ids: str | None, facts: ModelFacts, limits: Limits) -> Dump:
    """Open a file or folder; raises DumpError if it is not a dump of this model's tokens."""
    if "://" in path:
        return open_output(path, facts, limits)
    place = Path(path).expanduser()
    given = {} if token_ids is None else _open_ids(Path(token_ids).expanduser())
    if place.is_file():
        kind, arrays = _open_file(place, given)
        return _dump(kind, [(place, arrays)], facts, limits)
    if not place.is_dir():
        raise DumpError(f"{path}: no such file or folder")
    if is_saved_dataset(place):
        return _dump("cached activations of SAELens", [(place, open_saved_dataset(place) | given)], facts, limits)
    if next(place.glob("*.safetensors"), None) is not None and not _is_output(place):
        return _open_folder(place, given, facts, limits)
    if next(place.glob("*.npy"), None) is not None:
        arrays = {array.name: array for file in sorted(place.glob("*.npy")) for array in [open_npy(file)]}
        return _dump("a folder of .npy files", [(place, arrays | given)], facts, limits)
    return open_output(path, facts, limits)


def _is_output(folder: Path) -> bool:
    return (folder / "metadata.json").exists()


def _open_folder(folder: Path, given: Mapping[str, Stored], facts: ModelFacts, limits: Limits) -> Dump:
    """Open safetensors files, each with its own token ids, in the order of their numbers."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: _numbers(path.name))
    chosen = [(path, {**open_tensors(path), **given}) for path in files[: limits.samples]]
    return _dump("a folder of safetensors files", chosen, facts, limits, len(files))


def _numbers(name: str) -> list[tuple[int, str]]:
    """Sorts hs_2 before hs_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _open_file(path: Path, given: Mapping[str, Stored]) -> tuple[str, dict[str, Stored]]:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"\x93NUMPY"):
        return "a .npy file", {**_ids_beside(path), **given, path.stem: open_npy(path)}
    if head.startswith(b"PK"):
        return "an .npz file", {**_open_zip(path), **given}
    if head[8:9] == b"{":
        return "a safetensors file", {**open_tensors(path), **given}
    raise DumpError(
        f"{path}: is not safetensors, .npy or .npz"
        + (
            "; it is a pickle, and reading one runs what is in it: save it as safetensors"
            if head[:1] == b"\x80"
            else ""
        )
    )


def _open_zip(path: Path) -> dict[str, Stored]:
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith("data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise DumpError(f"{path}: is not a whole .npz file: {error}") from error
    if pickled:
        raise DumpError(
            f"{path}: is a file of torch.save, and reading one runs what is in it: save it with safetensors"
        )
    return open_npz(path)


def _ids_beside(path: Path) -> dict[str, Stored]:
    names = [name for name in NAMED if name != path.stem]
    return {name: open_npy(file) for name in names if (file := path.with_name(f"{name}.npy")).is_file()}


def _open_ids(path: Path) -> dict[str, Stored]:
    """Open the token ids of --token_ids, under the name that we search for."""
    if not path.is_file():
        raise DumpError(f"--token_ids {path}: no such file")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.lstrip()[:1] == b"[":
        return _listed_ids(path)
    if head.startswith(b"\x93NUMPY"):
        return {IDS[0]: open_npy(path)}
    _, arrays = _open_file(path, {})
    return {name: array for name, array in arrays.items() if name in NAMED}


def _listed_ids(path: Path) -> dict[str, Stored]:
    """Read a JSON list of ids, or a list of lists of any lengths."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        rows = listed if listed and isinstance(listed[0], list) else [listed]
        parts = [np.array(row, np.int64) for row in rows]
    except (ValueError, TypeError, OverflowError) as error:
        raise DumpError(f"--token_ids {path}: is not a JSON list of token ids, or of such lists: {error}") from error
    if not parts or any(part.ndim != 1 or not len(part) for part in parts):
        raise DumpError(f"--token_ids {path}: is not a JSON list of token ids, or of such lists")
    if len({len(part) for part in parts}) == 1:
        return {IDS[0]: _held(IDS[0], np.stack(parts))}
    lengths = np.array([len(part) for part in parts])
    return {IDS[0]: _held(IDS[0], np.concatenate(parts)), "lengths": _held("lengths", lengths)}


def _held(name: str, values: np.ndarray) -> Stored:
    return Stored(name, str(values.dtype), values.shape, lambda index: values[index])


def _dump(
    kind: str, files: Sequence[tuple[Path, Mapping[str, Stored]]], facts: ModelFacts, limits: Limits, of: int = 1
) -> Dump:
    """Combine the samples of the files; an array has the rows of all files."""
    prompts, parts, remarks = list[Prompt](), dict[str, list[DumpArray]](), list[str]()
    for number, (path, arrays) in enumerate(files):
        ids = find_ids(arrays, str(path))
        table = id_table(arrays, ids, facts, limits, str(path))
        prompts += [replace(prompt, name=_name(prompt.name, path, len(files))) for prompt in table.prompts]
        floats = [array for name, array in arrays.items() if array.dtype in _FLOATS and name not in NAMED]
        found = [one for array in floats for one in arrays_of(array, table, facts)]
        for one in found:
            parts.setdefault(one.name, []).append(one)
        if number == 0:
            remarks = _left_out(arrays, {one.name.split("[")[0] for one in found}, ids)
    whole = {name: ones for name, ones in parts.items() if len(ones) == len(files)}
    if not whole:
        raise DumpError(
            f"{files[0][0]}: has no array of floating-point numbers with a row for each of the"
            f" {sum(map(len, prompts))} tokens: {_described(files[0][1])}"
        )
    remarks += [f"{of - len(files)} of {of} files are not compared"] if of > len(files) else []
    return Dump(kind, prompts, [_joined(ones) for ones in whole.values()], remarks)


def _name(name: str, path: Path, files: int) -> str:
    return name if files == 1 else f"{path.name} {name}"


def _left_out(arrays: Mapping[str, Stored], taken: set[str], ids: Stored) -> list[str]:
    left = [name for name in arrays if name not in taken and name != ids.name and name not in NAMED]
    return [f"not compared, for want of a row for each token: {', '.join(left)}"] if left else []


def _described(arrays: Mapping[str, Stored]) -> str:
    return ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())


def _joined(parts: Sequence[DumpArray]) -> DumpArray:
    first = parts[0]
    read: Callable[[int], list[np.ndarray]] = lambda tokens: [rows for part in parts for rows in part.read(tokens)]  # noqa: E731
    return DumpArray(first.name, first.dtype, first.width, first.claim, read, first.remark)
