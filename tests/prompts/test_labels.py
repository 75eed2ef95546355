"""The cells that tokens are labelled with, read back, are the grids that the prompt shows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from layertap.core.cells import read_grids
from layertap.core.columns import NO_LABELS, NONE, ROLES, TEST
from layertap.core.records import Document, Grid, Pair, Task
from layertap.core.sample import Sample
from layertap.demo.tokenizer import demo_texts, write_tokenizer
from layertap.errors import PromptError
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder
from layertap.prompts.augment import Augmentation
from layertap.prompts.tokenizer import PromptTokenizer

ENCODERS = [
    "MinimalGridEncoder()",
    "GridWithSeparationEncoder(' ')",
    "GridWithSeparationEncoder(', ')",
    "RepeatNumberEncoder(2)",
    "RepeatNumberEncoder(3)",
    "ReplaceNumberEncoder(MinimalGridEncoder())",
    "RowNumberEncoder(ReplaceNumberEncoder(GridWithSeparationEncoder('|')))",
    "GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))",
    "GridCodeBlockEncoder(RepeatNumberEncoder(3))",
]
_cells = st.integers(0, 9)
_sizes = st.tuples(st.integers(1, 8), st.integers(1, 8))
grids = _sizes.flatmap(lambda size: st.tuples(*[st.tuples(*[_cells for _ in range(size[1])]) for _ in range(size[0])]))
tasks = st.builds(
    Task,
    st.just("task"),
    st.lists(st.builds(Pair, grids, grids), min_size=1, max_size=3).map(tuple),
    st.lists(st.builds(Pair, grids, grids), min_size=1, max_size=1).map(tuple),
)


def _merging(folder) -> None:
    """A tokenizer that makes one token of up to three digits, like Llama 3's, and one of a digit
    and its separator.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    digits = [str(digit) for digit in range(10)]
    pairs = [(a, b) for a in digits for b in digits]
    merges = [*pairs, *((a + b, c) for a, b in pairs for c in digits), ("Ċ", "0"), ("1", "Ċ"), ("Ġ", "2")]
    vocabulary = [*alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def tokenizers(qwen_folder, tmp_path_factory) -> dict[str, PromptTokenizer]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("demo", "merging")}
    write_tokenizer(folders["demo"], demo_texts())
    _merging(folders["merging"])
    return {name: load_tokenizer(folder) for name, folder in ({"qwen": qwen_folder} | folders).items()}


def _maker(tokenizer: PromptTokenizer, expression: str, answer: bool = True, **settings: object) -> PromptMaker:
    return PromptMaker(tokenizer, load_template(), parse_grid_encoder(expression), 2, answer, 3, **settings)


def require_grids(sample: Sample, task: Task, answer: bool) -> None:
    """Require that the labelled cells, read from the columns alone, give the shown grids."""
    assert read_grids(sample.columns) == _shown_grids(task, answer)
    outside = sample.columns["cells"] == 0
    for name in ("row", "col", "colours"):
        assert set(sample.columns[name][outside].tolist()) <= {NONE}


def _shown_grids(task: Task, answer: bool) -> dict[tuple[int, int], Grid]:
    pairs = [*enumerate(task.train), (TEST, task.test[0])]
    grids = {(number, side): grid for number, pair in pairs for side, grid in ((1, pair.input), (2, pair.output))}
    return {key: grid for key, grid in grids.items() if key != (TEST, 2) or answer}


def _augmented(sample: Sample, task: Task) -> Task:
    return Augmentation(**sample.origin["augmentation"]).apply(task)


@pytest.mark.parametrize("vocabulary", ["qwen", "demo", "merging"])
@pytest.mark.parametrize("expression", ENCODERS)
@given(task=tasks, answer=st.booleans())
def test_labelled_cells_read_back_are_the_grids(tokenizers, vocabulary, expression, task, answer):
    for sample in _maker(tokenizers[vocabulary], expression, answer).make([(0, task)]):
        require_grids(sample, _augmented(sample, task), answer)


@pytest.mark.whole
def test_cells_of_every_real_task_read_back_are_its_grids(tokenizers, arc_tasks):
    maker = _maker(tokenizers["qwen"], ENCODERS[-2])
    for task in arc_tasks:
        one = replace(task, test=task.test[:1])
        for sample in maker.make([(0, one)]):
            require_grids(sample, _augmented(sample, one), answer=True)


def test_qwen_has_one_cell_a_token_and_the_rest_of_a_grid_none(tokenizers):
    task = Task("t", (Pair(((1, 2),), ((3,), (4,))),), (Pair(((5,),), ((6,),)),))
    maker = replace(_maker(tokenizers["qwen"], "RowNumberEncoder(MinimalGridEncoder())"), predictions_per_task=1)
    (sample,) = maker.make([(0, task)])
    inside = sample.columns["side"] > 0
    shown = {name: values[inside].tolist() for name, values in sample.columns.items()}
    text = [maker.tokenizer.decode([token]) for token in shown["token_ids"]]
    assert set(shown["cells"]) == {0, 1}
    assert set(shown["example"]) == {0, TEST}
    for piece, count, colours in zip(text, shown["cells"], shown["colours"], strict=True):
        assert (piece == str(colours)) if count else (colours == NONE)


def test_the_roles_of_an_arc_prompt(tokenizers):
    task = Task("t", (Pair(((1, 2),), ((3,), (4,))),), (Pair(((5,),), ((6,),)),))
    for answer, opening in ((True, "### Output"), (False, "### Output")):
        sample = _maker(tokenizers["qwen"], "MinimalGridEncoder()", answer).make([(0, task)])[0]
        roles = sample.columns["role"]
        assert {ROLES[role] for role in set(roles.tolist())} == {"template", "system", "user", "assistant"}
        said = tokenizers["qwen"].decode(sample.token_ids[roles == ROLES.index("assistant")])
        assert said.startswith(opening)
        assert (len(said) > len(opening) + 1) == answer


def test_a_template_of_ones_own_has_labels_too(tokenizers, tmp_path):
    (tmp_path / "system.j2").write_text("")
    (tmp_path / "user.j2").write_text(
        "{% for e in examples %}{{ e.output | replace('\\n', '/') }} came from {{ e.input }}.{% endfor %}"
        "{{ test_input }}"
    )
    (tmp_path / "assistant.j2").write_text("{{ answer | trim }}")
    maker = replace(_maker(tokenizers["qwen"], "MinimalGridEncoder()"), template=load_template(folder=str(tmp_path)))
    task = Task("t", (Pair(((1, 2), (0, 0)), ((3,), (4,))), Pair(((7,),), ((8, 9),))), (Pair(((5,),), ((6,),)),))
    for sample in maker.make([(0, task)]):
        require_grids(sample, _augmented(sample, task), answer=True)


def test_plain_text_has_no_labels(tokenizers):
    (sample,) = _maker(tokenizers["qwen"], ENCODERS[0]).make([(0, Document("d", "1 2\n3 4"))])
    for name, value in NO_LABELS.items():
        assert np.unique(sample.columns[name]).tolist() == [value]


@pytest.mark.parametrize(
    ("written", "follows"),
    [
        ("{{ e.input | indent(2) }} {{ e.output }}", True),
        ("{{ '\\n'.join([e.input, e.output]) }}", True),
        ("{{ 'In: %s Out: %s' | format(e.input, e.output) }}", True),
        ("{{ 'In: {} Out: {}'.format(e.input, e.output) }}", False),
        ("{{ e.input }} {{ e.output | wordwrap(2) }}", False),
    ],
)
def test_a_template_that_loses_cells_is_refused(tokenizers, tmp_path, written, follows):
    (tmp_path / "system.j2").write_text("")
    (tmp_path / "user.j2").write_text("{% for e in examples %}" + written + "{% endfor %}{{ test_input }}")
    (tmp_path / "assistant.j2").write_text("{{ answer }}")
    maker = replace(_maker(tokenizers["qwen"], "MinimalGridEncoder()"), template=load_template(folder=str(tmp_path)))
    task = Task("t", (Pair(((1, 2), (0, 0)), ((3,), (4,))),), (Pair(((5,),), ((6,),)),))
    if not follows:
        with pytest.raises(PromptError, match=r"user\.j2: writes grids in a way that Layertap cannot follow"):
            maker.make([(0, task)])
        return
    for sample in maker.make([(0, task)]):
        require_grids(sample, _augmented(sample, task), answer=True)
