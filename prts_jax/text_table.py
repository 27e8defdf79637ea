"""Tables of text cells, aligned for a terminal; durations and bytes as their text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "–"
"""The cell of a value that is not known."""


@dataclass(frozen=True)
class Table:
    """A titled table; the first `text_columns` columns hold words, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def render(table: Table) -> str:
    """Returns title, header, a rule and the rows as lines of text."""
    header, *rows = align([table.header, *table.rows], table.text_columns)
    rule = "─" * max(map(len, (header, *rows)))
    return "\n".join([table.title, header, rule, *rows])


def align(rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Returns a line a row, columns two spaces apart, without trailing spaces.

    The first `text_columns` are aligned to the left, the others to the right.

    >>> align([["source", "tokens"], ["web", "1,024"]])
    ['source  tokens', 'web      1,024']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def duration(seconds: float | None) -> str:
    """Returns seconds as "42 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def format_bytes(count: float) -> str:
    """Returns bytes in the largest decimal unit that leaves a number of at least one.

    >>> format_bytes(4.5e9), format_bytes(33024), format_bytes(0)
    ('4.50 GB', '33.02 kB', '0 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"
