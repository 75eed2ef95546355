"""`--share_prefix`: the common beginning of prompts is computed once, and nothing else differs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import changed, finished, out

import layertap
from layertap.check.verify import verify
from layertap.config.extract import ExtractConfig
from layertap.core.columns import COLUMNS, PREFIX
from layertap.errors import RunMismatchError
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline.inputs import prompt_maker
from layertap.pipeline.prefix import FEWEST, find_prefixes
from layertap.pipeline.run import extract
from layertap.pipeline.step import StepProgram


@pytest.fixture
def exact(config: ExtractConfig) -> ExtractConfig:
    """A run in float32, of two layers at several sites."""
    return changed(config, compute_dtype="float32", activation_type=("residual", "attn", "neurons"))


def elsewhere(config: ExtractConfig, folder: Path, **changes: Any) -> ExtractConfig:
    """The same run with other folders."""
    places = {name: str(folder / name) for name in ("output_dir", "checkpoint_dir")}
    return changed(config, **places, **changes)


def require_same(ours: ExtractConfig, theirs: ExtractConfig, bound: float = 1e-5) -> int:
    """Require the same samples in both runs, to `bound`.

    Return how many of our tokens are a prefix.
    """
    found, expected = (layertap.ActivationDataset(out(run)) for run in (ours, theirs))
    samples = {sample.sample_idx: sample for sample in expected}
    assert {sample.sample_idx for sample in found} == samples.keys()
    prefix = 0
    for sample in found:
        other = samples[sample.sample_idx]
        for name in COLUMNS:
            assert np.array_equal(sample.column(name), other.column(name)), name
        for layer in found.layers:
            for site in found.sites:
                one, two = (np.asarray(each.activation(layer, site), np.float64) for each in (sample, other))
                assert (np.linalg.norm(one - two, axis=1) / np.linalg.norm(two, axis=1)).max() < bound
        prefix += int(((sample.column("flags") & PREFIX) > 0).sum())
    return prefix


def test_the_numbers_are_those_without_sharing(exact: ExtractConfig, tmp_path: Path) -> None:
    summary = extract(exact)
    apart = elsewhere(exact, tmp_path / "apart", share_prefix=False)
    plain = extract(apart)
    prefix = require_same(exact, apart)
    assert summary.tokens == plain.tokens
    assert summary.shared_tokens == prefix > 0.1 * summary.tokens
    assert summary.computed_tokens < plain.computed_tokens
    assert plain.shared_tokens == 0
    assert verify(out(exact)).sound


@pytest.mark.whole
@pytest.mark.parametrize("changes", [{"row_length": 256}, {"row_length": 2048, "batch_size": 1}])
def test_the_numbers_do_not_depend_on_the_row(exact: ExtractConfig, tmp_path: Path, changes: dict[str, int]) -> None:
    finished(exact)
    other = elsewhere(exact, tmp_path / "other", **changes)
    extract(other)
    assert require_same(exact, other) > 0


CHAT_TEMPLATE = (Path(layertap.__file__).parent / "demo" / "chat_template.jinja").read_text()
_USER = "Below are drawings by a child. {% for pair in examples %}{{ pair.input }}{% endfor %} Copy {{ test_input }}"
_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful machine.<|im_end|>\n{% endif %}"
)


def _own_template(folder: Path) -> str:
    """A folder with a template of the user's own."""
    folder.mkdir()
    for name, text in (("system", "You copy what you see."), ("user", _USER), ("assistant", "{{ answer }}")):
        (folder / f"{name}.j2").write_text(text)
    return str(folder)


def _with_system_prompt(model: Path, folder: Path) -> str:
    """The model, with a chat template that adds its own system prompt."""
    shutil.copytree(model, folder)
    path = folder / "chat_template.jinja"
    path.write_text(_DEFAULT_SYSTEM + CHAT_TEMPLATE)
    return str(folder)


@pytest.fixture
def mixed(exact: ExtractConfig, tmp_path: Path) -> ExtractConfig:
    """Puzzles in the user's own wording, conversations with and without a system message, and
    texts.
    """
    asked = {"role": "user", "content": "Why is the sky blue?"}
    of_all_kinds = [
        {"messages": [asked]},
        {"messages": [{"role": "system", "content": "You are a pirate."}, asked]},
        {"text": "Once upon a time there was a sky, and it was blue."},
    ]
    puzzles = Path(str(exact.dataset_path)).read_text().splitlines()[:2]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join([*puzzles, *map(json.dumps, of_all_kinds)]) + "\n")
    own = _own_template(tmp_path / "template")
    model = _with_system_prompt(Path(exact.model_path), tmp_path / "model")
    return changed(exact, dataset_path=str(path), prompt_template=own, model_path=model, activation_type=("residual",))


@pytest.mark.whole
def test_each_kind_of_sample_goes_on_from_its_own_prefix(mixed: ExtractConfig, tmp_path: Path) -> None:
    extract(mixed)
    apart = elsewhere(mixed, tmp_path / "apart", share_prefix=False)
    extract(apart)
    require_same(mixed, apart)
    maker = prompt_maker(mixed, open_checkpoint(mixed.model_path))
    prefixes = find_prefixes(maker, share=True).by_kind
    flagged: dict[str, set[int]] = {"puzzle": set(), "bare": set(), "own system": set(), "text": set()}
    for sample in layertap.ActivationDataset(out(mixed)):
        count = int(((sample.column("flags") & PREFIX) > 0).sum())
        words = {"pirate": "own system", "Once": "text"}
        kind = next((kind for word, kind in words.items() if word in sample.text_preview), "bare")
        flagged["puzzle" if sample.origin["augmentation"] is not None else kind].add(count)
    bare, common = map(len, prefixes["conversation"])
    assert flagged == {"puzzle": {len(prefixes["puzzle"][0])}, "bare": {bare}, "own system": {common}, "text": {0}}
    assert min(bare, len(prefixes["puzzle"][0])) >= FEWEST > common
    assert "drawings by a child" in maker.tokenizer.decode(prefixes["puzzle"][0].tolist())


def test_texts_without_a_common_beginning_run_as_without_sharing(
    exact: ExtractConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"Number {number} of the texts"}) + "\n" for number in range(3)))
    prefixes = []
    compile_step = StepProgram.compile

    def watched(self: StepProgram, shape: tuple[int, int], prefix: int = 0) -> Any:
        prefixes.append(prefix)
        return compile_step(self, shape, prefix)

    monkeypatch.setattr(StepProgram, "compile", watched)
    summary = extract(changed(exact, dataset_path=str(path)))
    assert summary.samples == 3
    assert set(prefixes) == {0}


def test_a_run_is_not_gone_on_with_the_other_way(exact: ExtractConfig) -> None:
    finished(exact)
    with pytest.raises(RunMismatchError, match="share_prefix"):
        extract(changed(exact, share_prefix=False))
