"""A figure of score differences between checkpoints and the first one, with intervals."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prts_jax.errors import UserError, storage_error
from prts_jax.evaluate.results import Row
from prts_jax.paths import as_path
from prts_jax.report.style import COLOURS, MARKERS, STYLE, legend_name, new_figure, png

ROW_PIXELS, MARGIN_PIXELS = 34, 90


def write(labels: Sequence[str], rows: Sequence[Row], path: str) -> None:
    """Draws the differences and writes them as PNG, replacing an earlier one.

    Raises:
      UserError: there are no differences to draw, or the file cannot be written.
    """
    content = png(draw(labels, rows))
    try:
        as_path(path).write_bytes(content)
    except OSError as error:
        raise storage_error(f"--picture={path}: cannot be written", error) from error


def draw(labels: Sequence[str], rows: Sequence[Row]) -> Figure:
    """Draws shares in percentage points on the left, other measures relative to the first score.

    Raises:
      UserError: there are no differences to draw.
    """
    shares = [row for row in rows if row.percent and any(row.differences)]
    others = [row for row in rows if not row.percent and any(row.differences)]
    panels = [panel for panel in (shares, others) if panel]
    if not panels:
        raise UserError("--picture: no two checkpoints have a measure on the same data")
    with rc_context(STYLE):
        figure = new_figure(MARGIN_PIXELS + ROW_PIXELS * max(map(len, panels)))
        for axes, panel in zip(
            np.ravel(figure.subplots(1, len(panels), squeeze=False)), panels, strict=True
        ):
            for at, label in enumerate(labels[1:], start=1):
                _draw_one(axes, panel, at, label, len(labels))
            axes.axvline(0, color="#888888", linewidth=1)
            axes.set_yticks(range(len(panel)), [row.title for row in panel])
            axes.set_ylim(len(panel) - 0.5, -0.5)
            unit = "percentage points" if panel[0].percent else "% of the first"
            axes.set_xlabel(f"difference to {labels[0]} ({unit}, 95% interval)")
        figure.axes[0].legend()
    return figure


def _draw_one(axes: Axes, panel: Sequence[Row], at: int, label: str, count: int) -> None:
    heights, values, halves = [], [], []
    for height, row in enumerate(panel):
        change, first = row.differences[at], row.scores[0]
        if change is None or first is None:
            continue
        scale = 100 if row.percent else 100 / first.value
        # Checkpoints of one measure lie below each other.
        heights.append(height + 0.5 * ((at - 0.5) / (count - 1) - 0.5))
        values.append(scale * change.value)
        halves.append(scale * change.half_width)
    axes.errorbar(
        values,
        heights,
        xerr=halves,
        fmt=MARKERS[(at - 1) % len(MARKERS)],
        color=COLOURS[(at - 1) % len(COLOURS)],
        capsize=3,
        label=legend_name(label),
    )
