"""Open Layertap's own output folders, in either format, as a dump."""

from collections.abc import Callable

import numpy as np

from layertap.compare.candidates import Candidate, ModelFacts, one_name
from layertap.compare.claims import Claim
from layertap.compare.dump import Dump, DumpArray, Limits, Prompt
from layertap.core.taps import Tap
from layertap.errors import DumpError
from layertap.reader import ActivationDataset


def open_output(path: str, facts: ModelFacts, limits: Limits) -> Dump:
    """Open the first samples of a run's output; raises DumpError if only some tokens were kept."""
    dataset = ActivationDataset(path)
    count = min(limits.samples, len(dataset))
    prompts = [_prompt(dataset, number, facts) for number in range(count)]
    taps = [Tap(layer, site) for layer in dataset.layers for site in dataset.sites]
    dtype = " and ".join(dataset.storage_dtypes)
    arrays = [
        DumpArray(
            f"{tap.site}.{tap.layer}",
            dtype,
            dataset.width(*tap),
            Claim(frozenset({Candidate(one_name(tap))}), Candidate(tap).describe()),
            _reader(dataset, count, tap),
        )
        for tap in taps
    ]
    left = [f"{len(dataset) - count} samples of {len(dataset)} are not compared"] if len(dataset) > count else []
    return Dump("an output of Layertap", prompts, arrays, left)


def _prompt(dataset: ActivationDataset, number: int, facts: ModelFacts) -> Prompt:
    sample = dataset[number]
    ids, positions = np.asarray(sample.token_ids), np.asarray(sample.positions)
    if not np.array_equal(positions, np.arange(len(positions))):
        raise DumpError(
            f"{dataset.path}: sample {sample.sample_idx} has not all tokens of its prompt (--keep_tokens): the others"
            " are needed to compute it again"
        )
    if len(ids) and int(ids.max()) >= facts.vocab_size:
        raise DumpError(
            f"{dataset.path}: token id {int(ids.max())} does not belong to {facts.name}: the run is of another model"
        )
    return Prompt(f"sample {sample.sample_idx}", ids.astype(np.int32), np.zeros(0, np.int32))


def _reader(dataset: ActivationDataset, count: int, tap: Tap) -> Callable[[int], list[np.ndarray]]:
    def read(tokens: int) -> list[np.ndarray]:
        return [np.asarray(dataset[number].activation(*tap)[:tokens]).astype(np.float32) for number in range(count)]

    return read
