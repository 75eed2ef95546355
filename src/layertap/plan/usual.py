"""The work of a run of which only a number of tokens is known: ARC prompts of usual lengths.

Their lengths are log-normal, like those of ARC-AGI-1. A window of them is packed by the run's own
code. Only the activations' bytes are exact.

What all prompts begin with needs no dataset: it follows from template and tokenizer. So it is
counted by the run's own code where a tokenizer is at hand. A published size has none, and to fetch
one would take a network. Then the plan assumes how many tokens it has, and says so.
"""

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

from layertap.config.plan import PlanConfig
from layertap.core.columns import COLUMNS
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.inputs import prompt_maker, window_rules
from layertap.pipeline.packing import pack_window, prefix_row
from layertap.pipeline.prefix import FEWEST, find_prefixes
from layertap.pipeline.windows import WindowRules
from layertap.plan.accelerators import (
    TYPICAL_MEAN,
    TYPICAL_MEDIAN,
    TYPICAL_PREFIXES,
    TYPICAL_TEXT_BYTES,
    UNKNOWN_PREFIX,
    Assumption,
)
from layertap.plan.planned import PlannedRun
from layertap.plan.workload import OutputSize, Tally, Workload, add_up
from layertap.shards.form import ShardFormat
from layertap.shards.quantised import is_quantised

_COLUMN_BYTES = sum(dtype.itemsize for dtype in COLUMNS.values())
_NORM_BYTES = 4
_STATISTICS_BYTES_A_VALUE = 16


@dataclass(frozen=True)
class UsualPrefix:
    """What all ARC prompts of the run begin with, if the run computes it once."""

    tokens: int = 0
    assumption: Assumption | None = None
    """None where the tokens were counted."""


def usual_prefix(run: PlannedRun) -> UsualPrefix:
    """Count the prefix with the tokenizer, or assume it; 0 tokens with `--no_share_prefix`.

    Raises an InputError as the run would.
    """
    config = run.config
    if not config.share_prefix:
        return UsualPrefix()
    checkpoint = run.checkpoint_with_tokenizer()
    if checkpoint is None:
        known = TYPICAL_PREFIXES.get(config.prompt_version) if config.prompt_template is None else None
        assumed = known or UNKNOWN_PREFIX
        return UsualPrefix(round(assumed.value), assumed)
    found = find_prefixes(prompt_maker(config, checkpoint), share=True)
    tokens = max(map(len, found.by_kind["puzzle"]))
    return UsualPrefix(tokens if tokens >= FEWEST else 0)


def usual_workload(
    config: PlanConfig,
    form: ShardFormat,
    *,
    devices: int,
    hosts: int = 1,
    context: int | None = None,
    prefix: int = 0,
) -> Workload:
    """Estimate the work of `config.tokens` tokens of typical prompts, for these hosts and devices.
    The first `prefix` tokens of a prompt are computed once on each device.
    """
    assert config.tokens is not None
    rules = window_rules(config, Hosts(0, hosts), devices, context)
    lengths = typical_lengths(rules, prefix)
    share = config.tokens / hosts
    # Shorten a window if the tokens do not fill it.
    lengths = lengths[: max(1, round(len(lengths) * share / sum(lengths)))]
    parts = [(length - prefix, prefix) if length > prefix else (length, 0) for length in lengths]
    steps = pack_window(
        [own for own, _ in parts],
        rules.ladder,
        rules.batch_size,
        rules.devices,
        [int(before > 0) for _, before in parts],
    )
    tally, part = Tally(), share / sum(lengths)
    tally.add(parts, steps)
    work = add_up([tally] * hosts, part)
    rows = hosts * devices * prefix_row(prefix)
    return replace(work, prefix_rows=rows, output=_usual_output(config.tokens, work.samples, form, config.shard_bytes))


def typical_lengths(rules: WindowRules, prefix: int = 0) -> list[int]:
    """Return a window of typical prompt lengths, long and short mixed, none over the limit. Each
    has a token beyond the prefix, if the limit allows it.
    """
    spread = math.sqrt(2 * math.log(TYPICAL_MEAN.value / TYPICAL_MEDIAN.value))
    quantiles = NormalDist(math.log(TYPICAL_MEDIAN.value), spread)
    count = rules.window_samples
    places = [(number * 0.6180339887 + 0.5 / count) % 1 for number in range(count)]  # evenly spread for any number
    drawn = [math.exp(quantiles.inv_cdf(min(max(place, 1e-4), 1 - 1e-4))) for place in places]
    return [min(max(prefix + 1, round(length)), rules.longest) for length in drawn]


def _usual_output(tokens: int, samples: float, form: ShardFormat, shard_bytes: int) -> OutputSize:
    activations = tokens * form.bytes_per_token
    shards = max(1, math.ceil(activations / shard_bytes))
    taps, text = len(form.taps), TYPICAL_TEXT_BYTES.value
    repeats = taps if form.name == "pickle" else 1  # for what is the same at all taps
    numbers = 2 if is_quantised(form.dtype) else 1  # a norm, and a scale
    beside = numbers * taps * tokens * _NORM_BYTES + repeats * (tokens * _COLUMN_BYTES + samples * text)
    return OutputSize(
        activations=activations,
        shard_files=activations + round(beside),
        statistics_files=shards * sum(form.taps.values()) * _STATISTICS_BYTES_A_VALUE,
        shards=shards,
        files=shards * (len(form.files(1)) + 1),
    )
