"""The table of TPU configurations in docs/tpu.md, as the TPU compiler gives it.

`python -m benchmarks.tpu_table docs/tpu.md` compiles every step that the table names (half an hour
on two cores), and puts the table between the page's two markers. The slow tests compile the same
steps and compare.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.tpu_compile import CompiledStep, TpuStep, compile_step
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.planned import model_config

BEGIN = "<!-- made by python -m benchmarks.tpu_table docs/tpu.md -->"
END = "<!-- end of what was made -->"

_ROW_LENGTH = 4096


class Documented(NamedTuple):
    """A model on a TPU, with what we recommend there."""

    model: str
    topology: str
    rows: int
    """`--batch_size`: rows of 4,096 tokens a chip."""
    longest: int
    """`--max_seq_length`: the longest row that fits, one a chip."""

    def step(self, taps: str) -> TpuStep:
        """The step that runs most, with taps in all layers or in the middle one."""
        return TpuStep(self.model, self.topology, self.rows, _ROW_LENGTH, self._layers(taps))

    def longest_step(self, taps: str) -> TpuStep:
        """The step of the longest rows."""
        return TpuStep(self.model, self.topology, 1, self.longest, self._layers(taps))

    def _layers(self, taps: str) -> tuple[int, ...]:
        return () if taps == "all" else (model_config(self.model).num_hidden_layers // 2,)


TAPS = ("middle", "all")
DOCUMENTED = (
    Documented("0.5b", "v5e:2x2", 8, 16_384),
    Documented("1.5b", "v5e:2x2", 8, 16_384),
    Documented("7b", "v5e:2x4", 8, 16_384),
    Documented("7b", "v5e:8x8", 8, 16_384),
    Documented("14b", "v5e:8x8", 4, 16_384),
    Documented("32b", "v5e:8x8", 2, 8192),
    Documented("72b", "v5e:8x8", 1, 8192),
    Documented("72b", "v4:4x4x4", 4, 16_384),
)


def table(configurations: tuple[Documented, ...] = DOCUMENTED) -> str:
    """The table in Markdown; compiles two steps for each of its lines."""
    lines = [
        "| model | chips | mesh | taps | `--batch_size` | memory | in use | at the longest row | to the host, a step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for documented in configurations:
        for taps in TAPS:
            often, rare = compile_step(documented.step(taps)), compile_step(documented.longest_step(taps))
            lines.append(_line(documented, taps, often, rare))
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _line(documented: Documented, taps: str, often: CompiledStep, rare: CompiledStep) -> str:
    tpu = parse_accelerator(documented.topology)
    cells = (
        f"Qwen2.5-{documented.model.upper()}",
        f"{tpu.chips} x {tpu.name.partition(':')[0]} (`{tpu.topology}`)",
        f"`{often.mesh}`",
        taps,
        documented.rows,
        f"{tpu.memory_bytes / 1e9:.0f} GB",
        f"{often.peak / 1e9:.1f} GB",
        f"{rare.peak / 1e9:.1f} GB ({documented.longest:,} tokens)",
        f"{often.host_outputs / 1e9:.2f} GB",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Replace the table of the page that is named."""
    page = Path(sys.argv[1])
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
