"""The tables of `prts eval`: losses by source, and scores of checkpoints side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.errors import one_line
from prts_jax.evaluate.results import Row
from prts_jax.evaluate.scores import Estimate
from prts_jax.text_table import MISSING, align

LEGEND = {
    "±": "± half of a 95% interval, estimated from the requests (from the rows of a store)",
    "*": "* the interval of the difference excludes 0",
    "~": "~ different requests: the interval of the difference is not paired",
}


def losses(figures: Mapping[str, Any]) -> list[str]:
    """Returns a table with one line per source and one for all, and the length of the rows."""
    rows = [["source", "tokens", "loss", "perplexity", "bits/byte"]]
    for name, row in {**figures["per_source"], "all": figures}.items():
        bits = MISSING if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        cells = [f"{row['tokens']:,}", f"{row['loss']:.4f}", f"{row['perplexity']:.4f}", bits]
        rows.append([one_line(name), *cells])
    return [*align(rows), f"in rows of {figures['length']:,} tokens"]


def table(labels: Sequence[str], rows: Sequence[Row], about: Mapping[str, str]) -> list[str]:
    """Returns a line per measure: each checkpoint's score, then the differences to the first.

    `about` has remarks on groups, such as a version.
    """
    cells = [["", *labels, *(f"{label} − {labels[0]}" for label in labels[1:])]]
    for row in rows:
        remark = about.get(row.group, "")
        scores = [_score(one, row.percent) for one in row.scores]
        changes = [
            _change(one, row.percent, paired)
            for one, paired in zip(row.differences[1:], row.paired[1:], strict=True)
        ]
        cells.append([f"{row.title}{f' ({remark})' if remark else ''}", *scores, *changes])
    used = "".join(cell for row in cells[1:] for cell in row[1:])
    return [*align(cells), *(text for sign, text in LEGEND.items() if sign in used)]


def _score(one: Estimate | None, percent: bool) -> str:
    if one is None:
        return MISSING
    return _number(one.value, percent) + _interval(one, percent)


def _change(one: Estimate | None, percent: bool, paired: bool) -> str:
    if one is None:
        return MISSING
    sign = "+" if one.value >= 0 else "−"
    mark = "*" if one.excludes_zero else " "
    unpaired = " " if paired else "~"
    return f"{sign}{_number(abs(one.value), percent)}{_interval(one, percent)} {mark}{unpaired}"


def _interval(one: Estimate, percent: bool) -> str:
    return "" if math.isnan(one.stderr) else f" ± {_number(one.half_width, percent)}"


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.2f}%"
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
