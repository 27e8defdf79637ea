"""What `prts eval` prints: losses by source, and scores of checkpoints side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.evaluate.score_table import Row
from prts_jax.evaluate.scores import Estimate

LEGEND = {
    "±": "± is half of a 95% interval, estimated from the requests (from the rows of a store)",
    "*": "* the interval of the difference excludes 0",
    "~": "~ not the same requests: the interval of the difference is not a paired one",
}


def losses(found: Mapping[str, Any]) -> list[str]:
    """Returns a line a source, and one for all together."""
    lines = [f"{'source':24} {'tokens':>12} {'loss':>8} {'perplexity':>12} {'bits/byte':>10}"]
    for name, row in {**found["per_source"], "all": found}.items():
        bits = "–" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}"
        lines.append(
            f"{name:24} {row['tokens']:>12,} {row['loss']:>8.4f} {row['perplexity']:>12.4f} "
            f"{bits:>10}"
        )
    return lines


def table(labels: Sequence[str], rows: Sequence[Row], about: Mapping[str, str]) -> list[str]:
    """Returns a line a measure: each checkpoint's score, then what each adds to the first.

    Args:
      labels: of the checkpoints.
      rows: what `rows_of` returned.
      about: group → what is said of it, such as its version.
    """
    cells = [["", *labels, *(f"{label} − {labels[0]}" for label in labels[1:])]]
    for row in rows:
        said = about.get(row.group, "")
        scores = [_score(one, row.percent) for one in row.scores]
        changes = [
            _change(one, row.percent, paired)
            for one, paired in zip(row.differences[1:], row.paired[1:], strict=True)
        ]
        cells.append([f"{row.title}{f' ({said})' if said else ''}", *scores, *changes])
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]
    used = "".join(cell for row in cells[1:] for cell in row[1:])
    return [*lines, *(text for sign, text in LEGEND.items() if sign in used)]


def _score(one: Estimate | None, percent: bool) -> str:
    if one is None:
        return "–"
    return _number(one.value, percent) + _interval(one, percent)


def _change(one: Estimate | None, percent: bool, paired: bool) -> str:
    if one is None:
        return "–"
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
