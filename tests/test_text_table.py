from prts_jax.text_table import Table, render


def test_words_are_aligned_left_and_numbers_right():
    table = Table("A title.", ("run", "loss"), [("base", "3.1"), ("grown run", "2.95")])
    assert render(table).splitlines() == [
        "A title.",
        "run        loss",
        "───────────────",
        "base        3.1",
        "grown run  2.95",
    ]
