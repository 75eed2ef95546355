"""The end of a run, in words: what lies where, how fast it went, and where the time went."""

from layertap.extract.run import RunSummary
from layertap.shards.manifest import Manifest


def describe(summary: RunSummary) -> str:
    """Lines for a person; see `RunSummary` for the figures."""
    manifest = summary.manifest
    if summary.samples == 0 and summary.resumed_shards:
        first = f"already complete: {manifest.samples} samples in {len(manifest.shards)} shards in {summary.output_dir}"
        return "\n".join((first, *_uploaded(summary)))
    lines = [
        f"{manifest.samples} samples, {manifest.tokens} tokens, {len(manifest.shards)} shards in {summary.output_dir}",
        *_left_out(summary),
        *_uploaded(summary),
        _speed(summary),
    ]
    lines += _certified(manifest)
    if summary.resumed_shards:
        lines.insert(1, f"resumed after {summary.resumed_shards} shards that earlier starts had committed")
    return "\n".join(lines)


def nothing_extracted(manifest: Manifest) -> str | None:
    """Why a complete run has no sample, where everything was left out; None where it has some, or had nothing to do."""
    if manifest.samples:
        return None
    skipped, overlong = (manifest.progress[name]["count"] for name in ("skipped_tasks", "overlong_samples"))
    reasons = [_counted(skipped, "malformed task")] if skipped else []
    reasons += [f"{_counted(overlong, 'sample')} longer than --max_seq_length"] if overlong else []
    return f"nothing was extracted: the run skipped {' and '.join(reasons)}" if reasons else None


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _left_out(summary: RunSummary) -> list[str]:
    progress = summary.manifest.progress
    skipped, overlong = progress["skipped_tasks"]["count"], progress["overlong_samples"]["count"]
    lines = []
    if skipped:
        lines.append(f"skipped {_counted(skipped, 'malformed task')}; metadata.json lists them")
    if overlong:
        lines.append(f"{_counted(overlong, 'sample')} longer than --max_seq_length; metadata.json lists them")
    return lines


def _uploaded(summary: RunSummary) -> list[str]:
    return [] if summary.upload_url is None else [f"every shard verified in {summary.upload_url}"]


def _certified(manifest: Manifest) -> list[str]:
    taps = manifest.certificate.get("taps")
    if not taps:
        return []
    worst = min(taps, key=lambda tap: tap["cosine_min"])
    return [
        f"certified against float32 on {manifest.certificate['prompts']} prompts: cosine at least"
        f" {worst['cosine_min']:.6f} (layer {worst['layer']}, {worst['site']}); metadata.json has every layer"
    ]


def _speed(summary: RunSummary) -> str:
    working = summary.seconds - summary.waited["loading"]
    real = summary.tokens / max(summary.computed_tokens, 1)
    waits = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.waited.items())
    return (
        f"{summary.seconds:.1f} s, {summary.tokens / max(working, 1e-9):.0f} tokens/s,"
        f" {real:.1%} of computed tokens were real; waited for {waits}"
    )
