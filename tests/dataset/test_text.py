import pytest

from layertap.dataset.text import document_from_row
from layertap.errors import BadTaskError


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "is a list without 'text'"),
        ({"id": "a"}, "is an object without 'text'"),
        ({"text": 5}, "'text' is a number, not a text"),
        ({"text": ""}, "'text' is empty"),
        ({"text": "ab\udc00"}, "'text' has half a surrogate pair at character 3"),
    ],
)
def test_an_unsound_text_is_named(raw, reason):
    with pytest.raises(BadTaskError) as caught:
        document_from_row(raw, "a")
    assert str(caught.value) == reason
