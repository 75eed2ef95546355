"""Measures of Layertap alone: each has a few runs in separate processes, and gives a sentence."""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import environ

from benchmarks.config import ContenderConfig
from benchmarks.encode_table import encode
from benchmarks.workload import Figures, extraction, model_folder
from layertap.model.families import read_config

Run = Callable[[ContenderConfig], Figures]


def _median(config: ContenderConfig, run: Run, variants: Mapping[str, ContenderConfig], what: str) -> dict[str, float]:
    """Return the median of `what` over the repeats of each variant.

    A first run of each fills the compilation cache.
    """
    for variant in variants.values():
        run(variant)
    runs = [{name: run(variant)[what] for name, variant in variants.items()} for _ in range(config.repeats)]
    return {name: statistics.median(one[name] for one in runs) for name in variants}


def _by_dtype(config: ContenderConfig, sentence: Callable[[ContenderConfig], str]) -> str:
    return "\n".join(f"{dtype}: {sentence(replace(config, dtype=dtype))}" for dtype in config.dtypes)


def depth(config: ContenderConfig, run: Run) -> str:
    """Compare the first half of the layers with all."""
    half = tuple(range(read_config(model_folder(config)).num_hidden_layers // 2))

    def sentence(config: ContenderConfig) -> str:
        seconds = _median(config, run, {"half": replace(config, layers=half), "all": config}, "seconds")
        ratio = seconds["half"] / seconds["all"]
        return f"layers 0-{half[-1]} {seconds['half']:.1f} s, all {seconds['all']:.1f} s: {ratio:.2f}"

    return _by_dtype(config, sentence)


def sites(config: ContenderConfig, run: Run) -> str:
    """Compare three sites with one, without writing."""

    def sentence(config: ContenderConfig) -> str:
        staged = replace(config, contender="stages")
        three = replace(staged, activation_type=("residual", "mlp", "attn"))
        seconds = _median(config, run, {"one": staged, "three": three}, "forward")
        ratio = seconds["three"] / seconds["one"]
        return f"one site {seconds['one']:.1f} s, three {seconds['three']:.1f} s, not written: {ratio:.2f}"

    return _by_dtype(config, sentence)


def stages(config: ContenderConfig, run: Run) -> str:
    """Compare the whole run with the slower of its halves."""

    def sentence(config: ContenderConfig) -> str:
        staged = replace(config, contender="stages")
        whole = _median(config, run, {"whole": config}, "seconds")["whole"]
        figures = [run(staged) for _ in range(config.repeats)]
        forward, writing = (statistics.median(each[name] for each in figures) for name in ("forward", "writing"))
        ratio = whole / max(forward, writing)
        return (
            f"forward only {forward:.1f} s, writing only {writing:.1f} s, both {whole:.1f} s: {ratio:.2f} of the slower"
        )

    return _by_dtype(config, sentence)


def formats(config: ContenderConfig, run: Run) -> str:
    """Writing speed of each format."""
    runs = [run(replace(config, contender="formats")) for _ in range(config.repeats)]
    speed = {
        name: statistics.median(each[name] for each in runs) for name in ("pickle", "gzip_6", "safetensors", "disk")
    }
    return (
        f"gzipped pickle {speed['pickle']:.0f} MB/s, the standard library's gzip 6 {speed['gzip_6']:.1f} MB/s:"
        f" {speed['pickle'] / speed['gzip_6']:.1f} times\n"
        f"safetensors {speed['safetensors']:.0f} MB/s, sequential disk {speed['disk']:.0f} MB/s:"
        f" {speed['safetensors'] / speed['disk']:.0%}"
    )


def memory(config: ContenderConfig, run: Run) -> str:
    """Compare the peak resident size for the tasks, and for four times as many, with the model,
    three shards and 1 GiB.
    """

    def sentence(config: ContenderConfig) -> str:
        few, many = (run(replace(config, tasks=tasks)) for tasks in (config.tasks, 4 * config.tasks))
        allowed = _model_bytes(config) + 3 * extraction(config).shard_bytes + (1 << 30)
        return (
            f"peak {few['peak_mb']:.0f} MB for {config.tasks} tasks ({_shards(config, few):.1f} shards),"
            f" {many['peak_mb']:.0f} MB for {4 * config.tasks}: {many['peak_mb'] / few['peak_mb']:.2f};"
            f" model, three shards and 1 GiB are {allowed / 1e6:.0f} MB"
        )

    return _by_dtype(config, sentence)


def _model_bytes(config: ContenderConfig) -> int:
    from layertap.model.mesh import weight_bytes
    from layertap.model.weights import abstract_model

    shape = read_config(model_folder(config))
    layers = max(config.layers, default=shape.num_hidden_layers - 1) + 1
    return weight_bytes(abstract_model(shape, layers, config.dtype))


def _shards(config: ContenderConfig, figures: Figures) -> float:
    """Count the shards that a run filled: fewer than four do not show if memory stays bounded."""
    from layertap.pipeline.setup import format_of_shards, resolve_run_taps

    settings, shape = extraction(config), read_config(model_folder(config))
    form = format_of_shards(settings, shape, resolve_run_taps(settings, shape))
    return figures["tokens"] * form.bytes_per_token / settings.shard_bytes


def output(config: ContenderConfig, run: Run) -> str:
    """The whole run, written in either format."""

    def sentence(config: ContenderConfig) -> str:
        variants = {name: replace(config, format=name) for name in ("pickle", "safetensors")}
        seconds = _median(config, run, variants, "seconds")
        pickle, safetensors = (seconds[name] for name in variants)
        ratio = max(seconds.values()) / min(seconds.values())
        return f"as gzipped pickle {pickle:.1f} s, as safetensors {safetensors:.1f} s: {ratio:.2f} apart"

    return _by_dtype(config, sentence)


def start(config: ContenderConfig, run: Run) -> str:
    """Compare a first start, with an empty compilation cache, with a second one; one task each."""

    def sentence(config: ContenderConfig) -> str:
        with tempfile.TemporaryDirectory() as cache:
            environ["JAX_COMPILATION_CACHE_DIR"] = cache
            first, second = (run(replace(config, tasks=1))["seconds"] for _ in range(2))
        return f"one task with an empty cache {first:.1f} s, again {second:.1f} s"

    return _by_dtype(config, sentence)


def stream(config: ContenderConfig, run: Run) -> str:
    """Batches to a trainer that does nothing, in turns with SAELens and with a run to disk."""
    if not config.layers:
        raise SystemExit("--measure stream: give one of --layers")
    variants = {
        "disk": replace(config, contender="layertap", format="safetensors"),
        "stream": replace(config, contender="stream"),
        "saelens": replace(config, contender="saelens"),
    }

    def sentence(config: ContenderConfig) -> str:
        own = {name: replace(variant, dtype=config.dtype) for name, variant in variants.items()}
        for variant in own.values():
            run(variant)
        return _compared([{name: run(variant) for name, variant in own.items()} for _ in range(config.repeats)])

    return _by_dtype(config, sentence)


def _compared(turns: Sequence[Mapping[str, Figures]]) -> str:
    """Medians of each contender, and of the ratios turn by turn."""

    def of(name: str, what: str) -> float:
        return statistics.median(turn[name][what] for turn in turns)

    def faster(other: str) -> float:
        ours, theirs = ([turn[name]["tokens"] / turn[name]["seconds"] for turn in turns] for name in ("stream", other))
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))

    speed = {name: of(name, "tokens") / of(name, "seconds") for name in turns[0]}
    peaks = ", ".join(f"{name} {of(name, 'peak_mb'):.0f}" for name in turns[0])
    return (
        f"tokens/s: to disk {speed['disk']:.0f}, stream {speed['stream']:.0f} ({faster('disk'):.2f} times), SAELens"
        f" {speed['saelens']:.0f} (the stream is {faster('saelens'):.2f} times as fast); first batch after"
        f" {of('stream', 'first_batch'):.1f} and {of('saelens', 'first_batch'):.1f} s; peak MB: {peaks}"
    )


def prefix(config: ContenderConfig, run: Run) -> str:
    """Compare the whole run with the prefix computed once, and with each prompt.

    The two take turns, and change who is first. Processor seconds are given, too, because other
    work on the machine changes them less.
    """

    def sentence(config: ContenderConfig) -> str:
        variants = {"shared": replace(config, prefix="shared"), "whole": replace(config, prefix="whole")}
        for variant in variants.values():
            run(variant)
        turns = []
        for turn in range(config.repeats):
            names = list(variants) if turn % 2 == 0 else list(variants)[::-1]
            turns.append({name: run(variants[name]) for name in names})
        return _once_and_each(turns)

    return _by_dtype(config, sentence)


def _once_and_each(turns: Sequence[Mapping[str, Figures]]) -> str:
    def ratio(what: str) -> str:
        found = sorted(turn["whole"][what] / turn["shared"][what] for turn in turns)
        return f"{statistics.median(found):.2f} times ({found[0]:.2f} to {found[-1]:.2f})"

    speed = {
        name: statistics.median(turn[name]["tokens"] / turn[name]["seconds"] for turn in turns)
        for name in ("shared", "whole")
    }
    share = turns[0]["shared"]["shared_tokens"] / turns[0]["shared"]["tokens"]
    return (
        f"{share:.1%} of {turns[0]['shared']['tokens']:,.0f} tokens are a prefix; computed once {speed['shared']:.0f},"
        f" with each prompt {speed['whole']:.0f} tokens/s: {ratio('seconds')} in {len(turns)} turns, and by the"
        f" processor's seconds {ratio('processor_seconds')}"
    )


MEASURES: Mapping[str, Callable[[ContenderConfig, Run], str]] = {
    "depth": depth,
    "sites": sites,
    "stages": stages,
    "formats": formats,
    "encode": encode,
    "memory": memory,
    "output": output,
    "start": start,
    "stream": stream,
    "prefix": prefix,
}
