"""A shard, or a sample, as JSON for a program."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from layertap.core.columns import SINK
from layertap.view.decoding import Decoder
from layertap.view.facts import flag_names, norm_facts, token_labels
from layertap.view.shard import SampleSeen, ShardSeen


def shard_to_json(seen: ShardSeen, decoder: Decoder, *, tokens: bool) -> Mapping[str, Any]:
    """Return everything that was read. With `tokens`, this includes each token of each sample."""
    manifest, entry = seen.manifest, seen.entry
    return {
        "shard": entry.index,
        "shards": len(manifest.shards),
        "complete": manifest.complete,
        "format": manifest.format,
        "storage_dtype": manifest.storage_dtype,
        "model_path": manifest.model_path,
        "keep_tokens": list(manifest.keep_tokens),
        "text_is": decoder.remark,
        "samples": [_sample(seen, number, decoder, tokens=tokens) for number in range(len(seen.samples))],
        "taps": [{**tap._asdict(), **asdict(norm_facts(at_tap, seen))} for tap, at_tap in seen.taps.items()],
    }


def _sample(seen: ShardSeen, number: int, decoder: Decoder, *, tokens: bool) -> dict[str, Any]:
    sample = seen.samples[number]
    told: dict[str, Any] = {
        "sample_idx": sample.sample_idx,
        "task_id": sample.words.task_id,
        "origin": dict(sample.words.origin),
        "text": decoder.text(sample),
    }
    count = len(sample.token_ids)
    each = [_token(seen, number, sample, token, decoder) for token in range(count)] if tokens else count
    return told | {"tokens": each}


def _token(seen: ShardSeen, number: int, sample: SampleSeen, token: int, decoder: Decoder) -> dict[str, Any]:
    token_id = int(sample.token_ids[token])
    flags = {tap: int(at_tap.flags[number][token]) for tap, at_tap in seen.taps.items()}
    labels = token_labels(sample, token)
    return {
        "position": int(sample.positions[token]),
        "id": token_id,
        "text": decoder.token(token_id),
        "flags": list(flag_names(next(iter(flags.values())))),
        "labels": None if labels is None else asdict(labels),
        "taps": [
            {**tap._asdict(), "norm": float(at_tap.norms[number][token]), "sink": bool(flags[tap] & SINK)}
            for tap, at_tap in seen.taps.items()
        ],
    }
