import dataclasses
from dataclasses import asdict
from hashlib import sha256

import pytest

from layertap.core.records import Conversation, Document, Pair, Task, TokenList
from layertap.core.sample import Sample
from layertap.errors import PromptError
from layertap.prompts import PromptMaker, load_template, load_tokenizer, parse_grid_encoder
from layertap.prompts.augment import draw_augmentation

_EXPRESSION = "GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))"
_ONE_TEST = Task("one-test", train=(Pair(((1, 2, 3),), ((3, 2, 1),)),), test=(Pair(((0, 5),), ((5, 0),)),))
_DOCUMENT = Document("page", "plain é text <|im_end|>")


@pytest.fixture
def maker(byte_folder):
    return PromptMaker(
        tokenizer=load_tokenizer(byte_folder),
        template=load_template(),
        encoder=parse_grid_encoder(_EXPRESSION),
        predictions_per_task=3,
        include_answer=True,
        seed=42,
    )


def text_of(maker: PromptMaker, sample: Sample) -> str:
    """The whole text of a sample."""
    return maker.tokenizer.decode(sample.token_ids)


def _sha256(token_ids):
    return sha256(token_ids.astype("<i4").tobytes()).hexdigest()[:16]


def _content(sample):
    """Return everything in a sample except its place in the dataset."""
    return sample.task_id, sample.origin, sample.text_preview, sample.token_ids.tolist()


def test_test_inputs_come_outer_and_predictions_inner(maker, two_tests):
    samples = maker.make([(10, two_tests)])
    assert [(s.sample_idx, s.origin["test_index"], s.origin["prediction"]) for s in samples] == [
        (10, 0, 0), (11, 0, 1), (12, 0, 2), (13, 1, 0), (14, 1, 1), (15, 1, 2),
    ]  # fmt: skip


def test_sample_numbers_are_the_ones_given_and_count_is_how_many(maker, two_tests):
    samples = maker.make([(7, _DOCUMENT), (100, _ONE_TEST), (3, _DOCUMENT)])
    assert [sample.sample_idx for sample in samples] == [7, 100, 101, 102, 3]
    assert [maker.count(record) for record in (_DOCUMENT, _ONE_TEST, two_tests)] == [1, 3, 6]
    assert maker.make([]) == []


def test_neighbours_and_place_change_nothing(maker, two_tests):
    alone = [_content(sample) for sample in maker.make([(0, two_tests)])]
    among_others = maker.make([(5, _ONE_TEST), (900, two_tests), (8, _DOCUMENT)])
    assert [_content(sample) for sample in among_others if sample.task_id == "two-tests"] == alone


def test_more_predictions_leave_the_first_ones_as_they_were(maker):
    more = dataclasses.replace(maker, predictions_per_task=5)
    few, many = maker.make([(0, _ONE_TEST)]), more.make([(0, _ONE_TEST)])
    assert [_content(sample) for sample in many[:3]] == [_content(sample) for sample in few]


def test_a_test_input_is_made_without_regard_to_the_others(maker, two_tests):
    only_first = dataclasses.replace(two_tests, test=two_tests.test[:1])
    alone, together = maker.make([(0, only_first)]), maker.make([(0, two_tests)])
    assert [_content(sample) for sample in together[:3]] == [_content(sample) for sample in alone]


def test_the_seed_changes_the_prompts(maker):
    other = dataclasses.replace(maker, seed=43)
    assert text_of(maker, maker.make([(0, _ONE_TEST)])[0]) != text_of(maker, other.make([(0, _ONE_TEST)])[0])


def test_the_text_shows_the_augmented_task(maker, two_tests):
    for sample in maker.make([(0, two_tests)]):
        augmentation = draw_augmentation(42, "two-tests", sample.origin["prediction"], 2)
        assert sample.origin["augmentation"] == asdict(augmentation)
        shown = maker.encoder.encode(augmentation.apply(two_tests).test[sample.origin["test_index"]].input)
        assert text_of(maker, sample).count(f"## Test case\n\n### Input\n{shown}<|im_end|>\n") == 1


def test_token_ids_are_those_of_the_text(maker, two_tests):
    for sample in maker.make([(0, two_tests), (6, _DOCUMENT)]):
        assert text_of(maker, sample)[:200] == sample.text_preview
        assert sample.columns["flags"].tolist() == [
            (not position) + 2 * (token in maker.tokenizer.special_ids)
            for position, token in enumerate(sample.token_ids.tolist())
        ]


def test_an_answer_is_shown_where_it_is_known_and_asked_for(maker, two_tests):
    unanswered = dataclasses.replace(maker, include_answer=False)
    ends = [text_of(maker, sample).endswith("### Output\n") for sample in maker.make([(0, two_tests)])]
    assert ends == [False] * 3 + [True] * 3
    assert all(text_of(maker, sample).endswith("### Output\n") for sample in unanswered.make([(0, two_tests)]))


def test_documents_are_taken_as_they_stand(maker):
    (sample,) = maker.make([(4, _DOCUMENT)])
    assert text_of(maker, sample) == _DOCUMENT.text
    assert sample.origin == {"test_index": None, "prediction": 0, "augmentation": None}


def test_a_cut_sample_keeps_its_first_tokens_and_its_place(maker):
    (whole,) = maker.make([(4, _DOCUMENT)])
    cut = whole.cut(5)
    assert cut.token_ids.tolist() == whole.token_ids[:5].tolist()
    assert (cut.sample_idx, cut.task_id, cut.text_preview) == (4, "page", whole.text_preview)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("", "task 'bad': its text '' has no tokens"), ("\ud800", "task 'bad': its text is not valid Unicode")],
)
def test_a_text_without_tokens_or_not_of_unicode_names_its_task(maker, text, complaint):
    with pytest.raises(PromptError, match=complaint):
        maker.make([(0, _DOCUMENT), (1, Document("bad", text))])


def test_at_least_one_prediction_is_made(maker):
    with pytest.raises(PromptError, match="predictions_per_task is 0"):
        dataclasses.replace(maker, predictions_per_task=0)


def test_identity_names_every_setting(maker):
    assert maker.identity() == {
        "tokenizer": maker.tokenizer.digest,
        "prompt_version": "output-from-examples-v0",
        "prompt_template": maker.template.digest,
        "grid_encoder": _EXPRESSION,
        "predictions_per_task": 3,
        "include_answer": True,
        "random_seed": 42,
    }


def test_tokens_of_a_real_task_never_change(maker, qwen_folder, arc_tasks):
    qwen = dataclasses.replace(maker, tokenizer=load_tokenizer(qwen_folder))
    samples = qwen.make([(0, arc_tasks[0])])
    assert [_sha256(sample.token_ids) for sample in samples] == [
        "2417c6ae908f57f4",
        "a0bb7a71b744049d",
        "27a446eca4ffbe4c",
    ]


def test_what_is_stored_is_plain_text(maker, two_tests):
    """Marks must not reach a pickle."""
    records = [two_tests, _DOCUMENT, Conversation("c", ({"role": "user", "content": "hi"},)), TokenList("l", (5, 6))]
    for sample in maker.make(list(enumerate(records))):
        assert type(sample.text_preview) is str
        assert type(sample.task_id) is str
