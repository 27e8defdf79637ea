import pytest

from prts_jax.text_table import Table, format_bytes, render


def test_words_are_aligned_left_and_numbers_right():
    table = Table("A title.", ("run", "loss"), [("base", "3.1"), ("grown run", "2.95")])
    assert render(table).splitlines() == [
        "A title.",
        "run        loss",
        "───────────────",
        "base        3.1",
        "grown run  2.95",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (33024, "33.02 kB"), (27e9, "27.00 GB"), (1.2e12, "1.20 TB")],
)
def test_bytes_have_the_largest_fitting_unit(count, text):
    assert format_bytes(count) == text
