"""`layertap compare`: from a path and a model to a verdict on each array."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from layertap.compare.candidates import EMBEDDINGS, Candidate, FinalNorm, ModelFacts, candidate_taps
from layertap.compare.case import Case, Truth
from layertap.compare.contexts import LONGEST_OPENING, Context, contexts, opened, openers
from layertap.compare.diagnosis import Diagnosis, better, diagnose, explain
from layertap.compare.dump import Dump, DumpArray, Limits, Prompt
from layertap.compare.opening import open_dump
from layertap.compare.restarts import find_restarts
from layertap.compare.transforms import SIMPLER
from layertap.compare.truth import MEMORY, TruthReader
from layertap.compare.verdict import Verdict, judge_diagnosis, judge_width
from layertap.config.compare import CompareConfig
from layertap.core.taps import SITES, Site, Tap
from layertap.errors import UsageError

_PROBED = 16  # tokens on which an opening is tried
_TRIED = 8
"""How many arrays decide whether another prompt was run."""
_IN_VAIN = 8
_LIKELY = 6
"""How many candidates of an array are tried with other prompts."""


@dataclass(frozen=True, eq=False)
class Finding:
    """One array of a dump."""

    array: DumpArray
    diagnosis: Diagnosis | None
    """None if no site has its width."""
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Comparison:
    """A whole dump."""

    path: str
    dump: Dump
    facts: ModelFacts
    tokens: int
    """The most tokens that were compared of each prompt."""
    findings: Sequence[Finding]
    texts: Sequence[Sequence[str]]
    """The texts of the tokens of each prompt."""

    @property
    def sound(self) -> bool:
        """Whether no array has a fault."""
        return not any(finding.verdict.fault for finding in self.findings)


def compare(config: CompareConfig) -> Comparison:
    """Compare a dump with its model.

    Raises DumpError if it is not a dump of the model's tokens, ModelError or PromptError if the
    model cannot run, UsageError for layers that it lacks.
    """
    with closing(TruthReader(config.model_path, config.revision, config.max_tokens)) as reader:
        facts = reader.facts
        _require_layers(config.layers, facts)
        dump = open_dump(config.dump, config.token_ids, facts, Limits(config.max_samples, config.max_tokens))
        taps = _taps(config.layers, config.sites or SITES, facts, {array.width for array in dump.arrays})
        tokens = _affordable(config.max_tokens, dump, taps, facts)
        known = [array for array in dump.arrays if facts.sites_of(array.width)]
        diagnoses = _diagnose(reader, dump.prompts, known, taps, tokens) if known and taps else {}
        findings = [_finding(array, diagnoses.get(array.name), facts) for array in dump.arrays]
        decode = reader.tokenizer.decode
        dump = _with_remark(dump, tokens, config.max_tokens)
        texts = [[decode([token]) for token in prompt.token_ids[:tokens]] for prompt in dump.prompts]
    return Comparison(config.dump, dump, facts, tokens, findings, texts)


def _require_layers(layers: Sequence[int], facts: ModelFacts) -> None:
    beyond = [layer for layer in layers if layer >= facts.num_layers]
    if beyond:
        raise UsageError(f"--layers {beyond[0]}: {facts.name} has layers 0 to {facts.num_layers - 1}")


def _taps(layers: Sequence[int], sites: Sequence[Site], facts: ModelFacts, widths: set[int]) -> tuple[Tap, ...]:
    """Return the taps that an array of the dump can be, by its width."""
    fitting = [site for site in sites if facts.widths[site] in widths]
    return candidate_taps(layers or range(facts.num_layers), fitting)


def _affordable(tokens: int, dump: Dump, taps: Sequence[Tap], facts: ModelFacts) -> int:
    """Return how many tokens of each prompt fit in memory."""
    numbers = max(sum(facts.widths[tap.site] for tap in taps), sum(array.width for array in dump.arrays), 1)
    context = tokens if facts.context is None else facts.context - LONGEST_OPENING
    return max(1, min(tokens, context, MEMORY // (4 * numbers * len(dump.prompts))))


def _with_remark(dump: Dump, tokens: int, asked: int) -> Dump:
    """Add a remark to the dump if fewer tokens fit than requested."""
    if tokens == asked or max(map(len, dump.prompts)) <= tokens:
        return dump
    told = f"the first {tokens} tokens of each sample are compared: more do not fit into the memory or the context"
    return replace(dump, remarks=[*dump.remarks, told])


def _diagnose(
    reader: TruthReader, prompts: Sequence[Prompt], arrays: Sequence[DumpArray], taps: Sequence[Tap], tokens: int
) -> dict[str, Diagnosis]:
    norm = reader.final_norm()
    truth = Truth(reader.read([prompt.token_ids[:tokens] for prompt in prompts], taps), norm)
    names = [prompt.name for prompt in prompts]
    with np.errstate(all="ignore"):  # non-finite and far too large values are reported as such
        cases = [_case(array, truth, taps, tokens, reader.facts, names) for array in arrays]
        found = _one_by_one([case for case in cases if case.candidates])
        return _with_contexts(reader, prompts, found, norm, tokens)


def _one_by_one(cases: Sequence[Case]) -> dict[str, Diagnosis]:
    """Diagnose each array alone, but first try what explained the one before.

    If nothing explains several arrays, the others are searched only briefly: a dump of another
    model has as many arrays as a dump of this one.
    """
    found: dict[str, Diagnosis] = {}
    like, in_vain = None, 0
    for case in cases:
        diagnosis = diagnose(case, like, briefly=in_vain >= _IN_VAIN)
        found[case.name] = diagnosis
        if diagnosis.explanation is None:
            in_vain += 1
        elif diagnosis.explanation.faults:
            like, in_vain = diagnosis.explanation, 0
    return found


def _case(
    array: DumpArray, truth: Truth, taps: Sequence[Tap], tokens: int, facts: ModelFacts, names: Sequence[str]
) -> Case:
    fitting = [tap for tap in taps if facts.widths[tap.site] == array.width]
    streams = [tap for tap in fitting if tap.site == "residual" or tap == EMBEDDINGS]
    candidates = [*map(Candidate, fitting), *(Candidate(tap, normed=True) for tap in streams)]
    return Case(array.name, array.read(tokens), candidates, truth, array.claim, names)


def _with_contexts(
    reader: TruthReader, prompts: Sequence[Prompt], found: dict[str, Diagnosis], norm: FinalNorm, tokens: int
) -> dict[str, Diagnosis]:
    """Compare arrays that are not explained to the last bit with other prompts.

    A context that explains some of them much better is what was run. Then it is used for every
    array that it explains better at all.
    """
    for context in _contexts(reader, prompts, found, tokens):
        tried = {name: one for name, one in found.items() if not _settled(one)}
        if not tried:
            break
        first = dict(list(tried.items())[:_TRIED])
        explained = _apply(reader, context, first, norm, SIMPLER)
        found |= explained
        if explained:
            rest = {name: one for name, one in found.items() if not (one.explanation and one.explanation.exact)}
            found |= _apply(reader, context, rest, norm, 1.0)
    return found


def _settled(diagnosis: Diagnosis) -> bool:
    return diagnosis.explanation is not None and diagnosis.explanation.settled


def _apply(
    reader: TruthReader, context: Context, found: Mapping[str, Diagnosis], norm: FinalNorm, factor: float
) -> dict[str, Diagnosis]:
    """Return the arrays that a context explains better by that factor."""
    likely = {name: _likely(one) for name, one in found.items()}
    truth = Truth(reader.read(context.runs, _taps_of(likely.values())), norm) if found else None
    explained = {}
    for name, one in found.items():
        assert truth is not None
        best = one.explanation
        for alignment in context.alignments(one.case, truth):
            for candidate in likely[name] if alignment.count else ():
                best = better(best, explain(one.case, alignment, candidate), one.nearest, factor)
        if best is not one.explanation:
            explained[name] = replace(one, explanation=best)
    return explained


def _taps_of(likely: Iterable[Sequence[Candidate]]) -> tuple[Tap, ...]:
    return tuple(dict.fromkeys(candidate.tap for each in likely for candidate in each))


def _contexts(
    reader: TruthReader, prompts: Sequence[Prompt], found: dict[str, Diagnosis], tokens: int
) -> Iterator[Context]:
    """Yield what may have been run instead, judged by the first array that is not explained."""
    first = next((one for one in found.values() if not _settled(one)), None)
    if first is None:
        return
    restarts = find_restarts(first.case, prompts, reader.read)
    if restarts is not None:
        yield restarts
    yield from contexts(prompts, tokens, reader.facts)
    ids = [prompt.token_ids[:tokens] for prompt in prompts]
    for opener in _fitting_openers(reader, first, ids[0]):
        yield opened(ids, opener, reader.tokenizer.decode(opener))


def _fitting_openers(reader: TruthReader, diagnosis: Diagnosis, ids: np.ndarray) -> list[tuple[int, ...]]:
    """Return the openers after which the first tokens of the first prompt are right."""
    case, likely = diagnosis.case, _likely(diagnosis)
    start = replace(
        case, found=[case.found[0][: _PROBED + 1]], truth=Truth(case.truth.prompts[:1], case.truth.final_norm)
    )
    probes = [opened([ids[:_PROBED]], opener, "") for opener in openers(reader.facts)]
    reads = reader.read([probe.runs[0] for probe in probes], _taps_of([likely])) if probes else []
    fitting = []
    for opener, probe, read in zip(openers(reader.facts), probes, reads, strict=True):
        alignments = probe.alignments(start, Truth([read], case.truth.final_norm))
        if any(explain(start, alignment, candidate).holds for alignment in alignments for candidate in likely):
            fitting.append(opener)
    return fitting


def _likely(diagnosis: Diagnosis) -> list[Candidate]:
    """Return the claimed candidates, and those nearest to the array."""
    case = diagnosis.case
    claimed = [candidate for candidate in case.candidates if case.claim and candidate in case.claim.candidates]
    nearest = [candidate for _, candidate in case.ranking(case.shifted(0))[:_LIKELY]]
    return list(dict.fromkeys([*claimed, *nearest]))


def _finding(array: DumpArray, diagnosis: Diagnosis | None, facts: ModelFacts) -> Finding:
    if diagnosis is None:
        return Finding(array, None, judge_width(array.width, facts))
    verdict = judge_diagnosis(diagnosis)
    if array.remark:
        verdict = Verdict(True, f"{array.remark}; {verdict.words}")
    return Finding(array, diagnosis, verdict)


def rows_compared(diagnosis: Diagnosis) -> int:
    """Return how many rows of an array were compared."""
    return int(np.sum([len(errors) for errors in diagnosis.best.errors]))
