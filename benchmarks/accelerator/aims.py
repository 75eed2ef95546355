"""The aims of a run on an accelerator beside what was measured, and what two runs say together.

transformers is compared with our forward pass over whole prompts, as it computes them. The prefix
is a row of its own: the made-up prompts begin with more of it than ARC tasks in Qwen's tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accelerator.records import Record

Figure = Callable[[str, str, str], float | None]
"""(part, case, figure) -> what was measured; None if nothing was."""


@dataclass(frozen=True)
class Aim:
    """One row of the table."""

    what: str
    wanted: float | None
    measured: float | None
    form: str

    def cells(self) -> list[str]:
        """For a person."""
        wanted = "" if self.wanted is None else format(self.wanted, self.form)
        measured = "not measured" if self.measured is None else format(self.measured, self.form)
        return [self.what, wanted, measured, self._verdict()]

    def _verdict(self) -> str:
        if self.wanted is None or self.measured is None:
            return ""
        return "met" if self.measured >= self.wanted else "NOT met"


def aims(found: Sequence[Record]) -> Iterable[Aim]:
    """The aims first, then what was measured to compare and has no aim."""
    figure, ceiling = _figures(found), largest_product(found)
    for size, wanted in (("7b", 0.5), ("0.5b", 0.35)):
        rate = figure("layertap", f"{size} all layers", "TFLOP/s")
        yield Aim(f"{size} forward pass, of the largest product", wanted, _ratio(rate, ceiling), ".0%")
    for size in ("7b", "0.5b"):
        own = figure("layertap", f"{size} all layers", "tokens/s")
        for way in ("padded", "at its best"):
            theirs = figure("transformers", f"{size} {way}, all layers", "tokens/s")
            yield Aim(f"{size} forward pass, times transformers {way}", 3.0, _ratio(own, theirs), ".2f")
    deep = figure("command", "7b, three layers", "tokens/s")
    yield Aim("7b, three layers to disk, tokens/s", 30_000, deep, ",.0f")
    yield from _compared(figure)


def _compared(figure: Figure) -> Iterable[Aim]:
    for size in ("7b", "0.5b"):
        once, each = (
            figure("layertap", f"{size} all layers{way}", "tokens/s") for way in (", the prefix computed once", "")
        )
        yield Aim(
            f"{size} forward pass, the prefix computed once, times with each prompt", None, _ratio(once, each), ".2f"
        )
    every, core, once, each = (
        figure("command", case, "tokens/s")
        for case in ("all layers", "all layers, one core", "one layer", "one layer, the prefix with each prompt")
    )
    yield Aim("all layers to disk, all cores, times one core", None, _ratio(every, core), ".2f")
    prefix = "one layer to disk, the prefix computed once, times with each prompt"
    yield Aim(prefix, None, _ratio(once, each), ".2f")
    stream, stored, alone = (
        figure("stream", case, "tokens/s") for case in ("from a stream", "from stored shards", "the trainer alone")
    )
    yield Aim("training from a stream, times from stored shards", None, _ratio(stream, stored), ".2f")
    yield Aim("training from a stream, of the trainer alone", None, _ratio(stream, alone), ".0%")


def largest_product(found: Sequence[Record]) -> float | None:
    """TFLOP/s of the largest bfloat16 product; None if there was none."""
    products = [record for record in found if record["part"] == "ceiling" and record["what"] == "figures"]
    return max((record["figures"]["TFLOP/s"] for record in products if "bfloat16" in record["case"]), default=None)


def _figures(found: Sequence[Record]) -> Figure:
    by_case: Mapping[tuple[str, str], Mapping[str, Any]] = {
        (record["part"], record["case"]): record["figures"] for record in found if record["what"] == "figures"
    }
    return lambda part, case, name: by_case.get((part, case), {}).get(name)


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
