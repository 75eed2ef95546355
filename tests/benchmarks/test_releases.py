"""The table of JAX's releases."""

from benchmarks.releases import table


def test_a_release_is_compared_with_the_first_within_each_turn() -> None:
    turns = [
        {"0.1": {"step": 100.0}, "0.2": {"step": 50.0}},
        {"0.1": {"step": 300.0}, "0.2": {"step": 300.0}},
        {"0.1": {"step": 300.0}, "0.2": {"step": 200.0}},
    ]
    assert table(["0.1", "0.2"], turns).splitlines() == [
        "| JAX | step ms |",
        "| --- | --- |",
        "| 0.1 | 300: 1.00 (1.00 to 1.00) |",
        "| 0.2 | 200: 1.50 (1.00 to 2.00) |",
    ]
