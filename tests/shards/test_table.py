from layertap.core.table import table


def test_columns_are_flush_and_lines_end_where_their_words_do():
    rows = [("n", "word", "end"), ("10", "a", "x"), ("7", "longer", "")]
    assert table(rows, left=(1, 2)).splitlines() == [" n  word    end", "10  a       x", " 7  longer"]
