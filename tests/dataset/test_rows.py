"""Each way in which a record can be malformed has its own sentence, with the place inside it."""

import pytest

from layertap.core.records import Pair, Task, TokenList
from layertap.dataset.rows import document_from_row, parse, tokens_from_row
from layertap.dataset.tasks import task_from_pairs, task_from_problem, task_from_splits
from layertap.errors import BadTaskError

_PAIR = {"input": [[1]], "output": [[2]]}
_PROBLEM = [[[1]], [[2]]]


def _reason(check, *arguments) -> str:
    with pytest.raises(BadTaskError) as caught:
        check(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (5, " is a number, not a grid (a list of rows)"),
        ([[]], ": the grid is empty"),
        ([[1], "1"], ": row 2 is a text, not a list"),
        ([[1, 2], [3, 4], [5]], ": row 3 has 1 cells, row 1 has 2"),
        ([[0], []], ": row 2 has 0 cells, row 1 has 1"),
        ([[0]] * 31, ": 31 rows of 1 cells; a grid has at most 30 a side"),
        ([[0] * 31], ": 1 rows of 31 cells; a grid has at most 30 a side"),
        ([[0, 10]], ": row 1, cell 2 is 10, not a colour (a whole number 0 to 9)"),
        ([[-1]], ": row 1, cell 1 is -1, not a colour (a whole number 0 to 9)"),
        ([[0], [True]], ": row 2, cell 1 is True, not a colour (a whole number 0 to 9)"),
        ([[1.0]], ": row 1, cell 1 is 1.0, not a colour (a whole number 0 to 9)"),
        ([["1"]], ": row 1, cell 1 is '1', not a colour (a whole number 0 to 9)"),
        ([[None]], ": row 1, cell 1 is None, not a colour (a whole number 0 to 9)"),
        ([[[1]]], ": row 1, cell 1 is [1], not a colour (a whole number 0 to 9)"),
    ],
)
def test_an_unsound_grid_is_named_with_its_place(grid, reason):
    raw = {"train": [_PAIR, {"input": [[1]], "output": grid}], "test": [_PAIR]}

    assert _reason(task_from_splits, raw, "a") == f"train pair 2 output{reason}"


@pytest.mark.parametrize(
    ("check", "raw", "reason"),
    [
        (task_from_splits, [], "is a list, not an object with 'train' and 'test'"),
        (task_from_splits, {"test": [_PAIR]}, "lacks 'train'"),
        (task_from_splits, {"train": [_PAIR]}, "lacks 'test'"),
        (task_from_splits, {"train": [], "test": [_PAIR]}, "'train' is empty"),
        (task_from_splits, {"train": [_PAIR], "test": []}, "'test' is empty"),
        (task_from_splits, {"train": {}, "test": [_PAIR]}, "'train' is an object, not a list of pairs"),
        (
            task_from_splits,
            {"train": [5], "test": [_PAIR]},
            "train pair 1 is a number, not an object with 'input' and 'output'",
        ),
        (task_from_splits, {"train": [{"output": [[1]]}], "test": [_PAIR]}, "train pair 1 lacks 'input'"),
        (task_from_splits, {"train": [{"input": [[1]]}], "test": [_PAIR]}, "train pair 1 has no output"),
        (task_from_splits, {"train": [{**_PAIR, "output": None}], "test": [_PAIR]}, "train pair 1 has no output"),
        (task_from_splits, {"train": [_PAIR], "test": [_PAIR, {"output": [[1]]}]}, "test pair 2 lacks 'input'"),
        (
            task_from_splits,
            {"train": [_PAIR], "test": [{**_PAIR, "output": [[]]}]},
            "test pair 1 output: the grid is empty",
        ),
        (task_from_problem, [], "is a list, not a problem with 'examples'"),
        (task_from_problem, {"source": ""}, "is an object without 'examples', not a problem with 'examples'"),
        (task_from_problem, {"examples": "x"}, "'examples' is a text, not a list of [input, output]"),
        (task_from_problem, {"examples": [_PROBLEM, [[[1]]]]}, "example 2 is not a list of two, [input, output]"),
        (
            task_from_problem,
            {"examples": [_PROBLEM]},
            "has 1 examples; at least two are needed, because the last one is the test",
        ),
        (task_from_problem, {"examples": [[[[1]], []], _PROBLEM]}, "example 1 has no output"),
        (task_from_pairs, {}, "is an object, not a list of pairs"),
        (task_from_pairs, [_PAIR], "has 1 pairs; at least two are needed, because the last one is the test"),
        (task_from_pairs, [_PAIR, 5], "pair 2 is a number, not an object with 'input' and 'output'"),
        (tokens_from_row, [], "is a list without 'input_ids'"),
        (tokens_from_row, {"input_ids": 5}, "'input_ids' is a number, not a list"),
        (
            tokens_from_row,
            {"input_ids": "[1"},
            "'input_ids' is a text that is not JSON: Expecting ',' delimiter at column 3",
        ),
        (tokens_from_row, {"token_ids": []}, "'token_ids' is empty"),
        (tokens_from_row, {"input_ids": [1, -1]}, "'input_ids': token 2 is -1, not the number of a token (0 or more)"),
        (
            tokens_from_row,
            {"input_ids": [1, 2.0]},
            "'input_ids': token 2 is 2.0, not the number of a token (0 or more)",
        ),
        (tokens_from_row, {"input_ids": [True]}, "'input_ids': token 1 is True, not the number of a token (0 or more)"),
        (
            tokens_from_row,
            {"input_ids": [0, -1, 2], "attention_mask": [0, 1, 1]},
            "'input_ids': token 2 is -1, not the number of a token (0 or more)",
        ),
        (
            tokens_from_row,
            {"input_ids": [1, 2], "attention_mask": [1]},
            "'attention_mask' has 1 values, but there are 2 tokens",
        ),
        (
            tokens_from_row,
            {"input_ids": [1, 2], "attention_mask": [1, 2]},
            "'attention_mask': value 2 is 2, neither 0 nor 1",
        ),
        (
            tokens_from_row,
            {"input_ids": [1], "attention_mask": [[1]]},
            "'attention_mask': value 1 is [1], neither 0 nor 1",
        ),
        (tokens_from_row, {"input_ids": [1], "attention_mask": [0]}, "'attention_mask' is 0 for every token"),
        (
            tokens_from_row,
            {"input_ids": [1, 2, 3, 4, 5], "attention_mask": [0, 1, 0, 1, 0]},
            "'attention_mask' is 0 for token 3, in the middle; padding is at the beginning or end",
        ),
        (document_from_row, [], "is a list without 'text'"),
        (document_from_row, {"id": "a"}, "is an object without 'text'"),
        (document_from_row, {"text": 5}, "'text' is a number, not a text"),
        (document_from_row, {"text": ""}, "'text' is empty"),
        (document_from_row, {"text": "ab\udc00"}, "'text' has half a surrogate pair at character 3"),
    ],
)
def test_an_unsound_record_is_named_with_its_place(check, raw, reason):
    assert _reason(check, raw, "a") == reason


def test_the_largest_grid_is_a_grid():
    largest = [[9] * 30] * 30

    task = task_from_splits({"train": [{"input": largest, "output": largest}], "test": [_PAIR]}, "a")
    assert task.train[0].input == ((9,) * 30,) * 30


@pytest.mark.parametrize("test", [{"input": [[3]]}, {"input": [[3]], "output": None}, {"input": [[3]], "output": []}])
def test_a_test_output_may_be_unknown_in_every_shape(test):
    expected = Task("a", (Pair(((1,),), ((2,),)),), (Pair(((3,),), None),))

    assert task_from_splits({"train": [_PAIR], "test": [test]}, "a") == expected
    assert task_from_pairs([_PAIR, test], "a") == expected
    assert task_from_problem({"examples": [_PROBLEM, [test["input"], test.get("output")]]}, "a") == expected


@pytest.mark.parametrize("key", ["input_ids", "token_ids"])
@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ([1, 1, 1, 1], (7, 8, 9, 0)),
        ([1, 1, 1, 0], (7, 8, 9)),
        ([0, 0, 1, 1], (9, 0)),
        ([0, 1, 0, 0], (8,)),
        ("[0, 1, 1, 0]", (8, 9)),
        (None, (7, 8, 9, 0)),
    ],
)
def test_an_attention_mask_leaves_the_padding_out(key, mask, kept):
    assert tokens_from_row({key: [7, 8, 9, 0], "attention_mask": mask}, "a") == TokenList("a", kept)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": }', "is not JSON: Expecting value at column 7"),
        (b'{\n"a": }', "is not JSON: Expecting value at line 2 column 6"),
        (b'{"a": 1}{"b": 2}', "is not JSON: Extra data at column 9"),
        (b'"\xff"', "is not UTF-8 text: invalid start byte at byte 2"),
        (b'{"b": {"a": 1, "a": 1}}', "has the key 'a' twice in one object"),
        (b"[" * 100_000, "is not a task: its lists are nested too deeply"),
    ],
)
def test_bytes_that_are_not_one_json_value_are_named_with_their_place(data, reason):
    assert _reason(parse, data) == reason


def test_an_overlong_number_is_refused():
    assert _reason(parse, b"9" * 5000).startswith("holds a number that cannot be read")


def test_a_byte_order_mark_is_no_part_of_the_value():
    assert parse(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(constant):
    """Python's own reader accepts them, and streams are written as JSON again."""
    with pytest.raises(BadTaskError, match=f"is not JSON: {constant} is not a JSON number"):
        parse(f'{{"messages": [{{"role": "user", "content": "a", "score": {constant}}}]}}'.encode())
