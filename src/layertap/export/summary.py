"""The closing report of an export: what it wrote, and what the format could not hold.

Nothing is lost silently. Each line names what was left out or changed, and what was done instead;
for numbers, it gives the worst error.
"""

from collections.abc import Iterator
from pathlib import Path

from layertap.export.form import Form
from layertap.export.values import is_exact
from layertap.shards.quantised import read_as


def describe(form: Form, to: str, *, checked: bool) -> str:
    """Return the report for the terminal."""
    dataset = form.source.dataset
    head, *losses = form.describe()
    written = _bytes(form.folder)
    lines = [
        f"{form.folder}: {form.total('tokens')} tokens of {len(form.source)} shards, {written / 1e6:.1f} MB, as {to}",
        f"  {head}",
        "  read back and compared with the source: equal" if checked else "  not read back: --no_check",
        *(f"  {line}" for line in [*_values(form), *losses]),
    ]
    if not dataset.complete:
        lines.append("  the run is not complete: only the shards committed so far are exported")
    return "\n".join(lines)


def _values(form: Form) -> Iterator[str]:
    """Describe how the values were converted."""
    target = form.dtype.name
    for stored in form.source.dataset.storage_dtypes:
        read = read_as(stored)
        if stored == target:
            yield f"values: {stored}, as stored"
        elif is_exact(read, target):
            yield f"values: {stored} {'' if read == stored else 'and scales '}written as {target}, exactly"
        else:
            worst = {name: error for part in form.parts for name, error in part["errors"].items()}
            for part in form.parts:
                worst |= {name: max(error, worst[name]) for name, error in part["errors"].items()}
            name = max(worst, key=worst.__getitem__, default="")
            error = f"{worst[name]:.1e} of its norm, at {name}" if worst else "none"
            yield f"values: {stored} written as {target}; the worst error of a token is {error}"
    nonfinite = sum(source.manifest.nonfinite for source in form.source.dataset.shards.sources)
    if nonfinite:
        yield f"{nonfinite} activations of the run are not finite; wanted ones are exported unchanged"


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
