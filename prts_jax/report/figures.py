"""The figures of a report: validation loss over total FLOPs, tokens, time, and by source."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prts_jax.report.baseline import seconds_before
from prts_jax.report.comparison import SOURCE, Comparison
from prts_jax.report.runs import Run, is_finite, shape_name
from prts_jax.report.speedup import Level
from prts_jax.report.style import (
    BASELINE_COLOUR,
    COLOURS,
    HEIGHT_PIXELS,
    MARKERS,
    STYLE,
    legend_name,
    new_figure,
    png,
)
from prts_jax.report.table import percent

GROWTH_LINES = 4
"""Heights at which the names of neighbouring growths are written, so that they do not overlap."""

SHOWN_AFTER = 0.1
"""Share of the x axis whose steep fall of the loss is cut off, so that the rest is legible."""

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Label of a run → x and loss, float64 vectors of one length."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The x axis of a figure: its title, key in the metrics, and unit of the largest value."""

    name: str
    key: str
    unit: Callable[[float], tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Look:
    """Colour, marker and line of a run, the same in every figure."""

    colour: str
    marker: str
    dashed: bool


def _flops_unit(largest: float) -> tuple[float, str]:
    exponent = 3 * int(math.log10(largest) // 3) if largest >= 1 else 0
    return 10.0**exponent, f"10{str(exponent).translate(SUPERSCRIPTS)} FLOPs"


def _tokens_unit(largest: float) -> tuple[float, str]:
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if largest >= size:
            return size, f"{name} tokens"
    return 1.0, "tokens"


def _time_unit(largest: float) -> tuple[float, str]:
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if largest >= 2 * size:
            return size, name
    return 1.0, "seconds"


FLOPS = Axis("total FLOPs", "flops", _flops_unit)
TOKENS = Axis("tokens", "tokens", _tokens_unit)
TIME = Axis("training time", "seconds", _time_unit)


def draw_all(comparison: Comparison) -> dict[str, bytes]:
    """Returns the PNG files of a report by name, the main one first.

    Empty if no run has metrics; without per-source validation the figure by source is left out.
    """
    if not any(run.rows for run in comparison.runs):
        return {}
    with rc_context(STYLE):
        figures = {
            "loss_over_flops.png": over_flops(comparison),
            "loss_over_tokens.png": loss_over(comparison, TOKENS),
            "loss_over_time.png": loss_over(comparison, TIME),
        }
        if comparison.sources():
            figures["loss_by_source.png"] = by_source(comparison)
        return {name: png(figure) for name, figure in figures.items()}


def loss_over(comparison: Comparison, axis: Axis) -> Figure:
    """Draws validation loss (training loss if no run has any) over `axis`, with growth points."""
    key, name = _loss_key(comparison)
    figure = new_figure(HEIGHT_PIXELS)
    axes = figure.subplots()
    _draw_runs(axes, comparison, axis, key)
    _draw_growths(axes, comparison, axis, key)
    _, unit = _unit(comparison, axis)
    axes.set_xlabel(f"{axis.name}, ancestors included ({unit})")
    axes.set_ylabel(f"{name} loss (nats / token)")
    axes.set_title(f"{name.capitalize()} loss over {axis.name}")
    axes.legend(loc="upper right")
    return figure


def over_flops(comparison: Comparison) -> Figure:
    """Draws loss over total FLOPs, with growth points and the speed-up at equal loss."""
    figure = loss_over(comparison, FLOPS)
    level = comparison.best_level()
    if level is not None:
        _draw_speedup(figure.axes[0], level, _unit(comparison, FLOPS)[0])
    return figure


def by_source(comparison: Comparison) -> Figure:
    """Draws validation loss over total FLOPs, one panel per source."""
    sources = comparison.sources()
    columns = min(3, len(sources))
    lines = math.ceil(len(sources) / columns)
    figure = new_figure(HEIGHT_PIXELS * (0.2 + 0.6 * lines))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for panel, source in zip(panels.flat, sources, strict=False):
        _draw_runs(panel, comparison, FLOPS, f"{SOURCE}{source}")
        panel.set_title(source, loc="left", fontsize=11.5)
    for panel in panels.flat[len(sources) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_ylabel("loss (nats / token)")
    panels.flat[0].legend(loc="upper right", fontsize=9.5)
    _, unit = _unit(comparison, FLOPS)
    figure.supxlabel(f"total FLOPs, ancestors included ({unit})", fontsize=11.5)
    figure.suptitle("Validation loss by source", x=0.01, ha="left", weight="bold", fontsize=13)
    return figure


def _loss_key(comparison: Comparison) -> tuple[str, str]:
    """Returns key and name of the loss to draw: training loss if no run has validation loss."""
    if any("validation_loss" in row for run in comparison.runs for row in run.rows):
        return "validation_loss", "validation"
    return "loss", "training"


def _curves(comparison: Comparison, axis: Axis, key: str) -> Curves:
    curves = {}
    for run in comparison.runs:
        x, y = run.curve(axis.key, key)
        curves[run.label] = (x + _seconds_of_ancestors(comparison, run, axis), y)
    return curves


def _seconds_of_ancestors(comparison: Comparison, run: Run, axis: Axis) -> float:
    """Returns the offset of a run's x values: only its seconds do not include its ancestors."""
    return (seconds_before(run, comparison.bases) or 0.0) if axis is TIME else 0.0


def _unit(comparison: Comparison, axis: Axis) -> tuple[float, str]:
    curves = _curves(comparison, axis, _loss_key(comparison)[0])
    return axis.unit(max((float(x[-1]) for x, _ in curves.values() if len(x)), default=1.0))


def _looks(comparison: Comparison) -> dict[str, Look]:
    """Returns each run's look; a base is dashed, in the colour of the first run grown from it."""
    looks: dict[str, Look] = {}
    base_labels = {base.label for base in comparison.bases.values()}
    free = itertools.cycle(zip(COLOURS, MARKERS, strict=True))
    for run in comparison.runs:
        if run is comparison.baseline:
            looks[run.label] = Look(BASELINE_COLOUR, "s", False)
        elif run.label not in base_labels:
            looks[run.label] = Look(*next(free), False)
    for run in comparison.runs:
        look = looks.get(run.label)
        base = comparison.bases.get(run.label)
        while base is not None and look is not None:
            looks.setdefault(base.label, Look(look.colour, look.marker, True))
            base = comparison.bases.get(base.label)
    return looks


def _draw_runs(axes: Axes, comparison: Comparison, axis: Axis, key: str) -> None:
    looks, curves = _looks(comparison), _curves(comparison, axis, key)
    unit, _ = _unit(comparison, axis)
    for run in comparison.runs:
        x, y = curves[run.label]
        if len(x):
            look = looks[run.label]
            axes.plot(
                x / unit,
                y,
                color=look.colour,
                linestyle=(0, (4, 2)) if look.dashed else "-",
                linewidth=1.6 if look.dashed else 2.0,
                marker=look.marker,
                markersize=3.2 if len(x) <= 80 else 0,
                label=legend_name(f"{run.label} ({run.shape()})" if run.shape() else run.label),
                zorder=3,
            )
    axes.set_ylim(*_loss_range(curves))
    axes.set_xlim(left=0)
    axes.margins(x=0.02)


def _loss_range(curves: Curves) -> tuple[float, float]:
    """Returns the limits of the y axis: all curves without their steep beginning."""
    drawn = [(x, y) for x, y in curves.values() if len(x)]
    if not drawn:
        return 0.0, 1.0
    longest = max(x[-1] - x[0] for x, _ in drawn)
    tails = [np.append(y[x >= x[0] + SHOWN_AFTER * longest], y[-1]) for x, y in drawn]
    low = min(float(y.min()) for _, y in drawn)
    high = max(float(tail.max()) for tail in tails)
    span = max(high - low, 0.02)
    return low - 0.14 * span, high + 0.08 * span


def _draw_growths(axes: Axes, comparison: Comparison, axis: Axis, key: str) -> None:
    looks, curves = _looks(comparison), _curves(comparison, axis, key)
    unit, _ = _unit(comparison, axis)
    marked: set[float] = set()
    for run in comparison.runs:
        for x, loss, text in _growths(comparison, run, curves, axis, key):
            if x not in marked:  # several runs may grow from one base
                line = len(marked) % GROWTH_LINES
                _draw_growth(axes, x / unit, loss, text, looks[run.label].colour, line)
            marked.add(x)


def _growths(
    comparison: Comparison, run: Run, curves: Curves, axis: Axis, key: str
) -> Iterator[tuple[float, float, str]]:
    """Yields each growth of a run: its x, the loss before it, and the two shapes."""
    x, y = curves[run.label]
    if not len(x):
        return
    stages = run.growths_on_the_way()
    if run.rows[0].get("growth") if stages else run.grew():
        base, shapes = comparison.bases.get(run.label), _grown_shapes(run.rows[0])
        loss, text = float(y[0]), shapes or f"to {run.shape()}"
        if base is not None and len(curves[base.label][0]):
            loss = float(np.interp(x[0], *curves[base.label]))
            text = shapes or f"{base.shape()} → {run.shape()}"
        yield float(x[0]), loss, f"growth {text}"
    seconds = _seconds_of_ancestors(comparison, run, axis)
    for row in stages:
        end = row["previous_stage"]
        if is_finite(end.get(axis.key)):
            x_end, loss = end[axis.key] + seconds, end.get(key)
            loss = loss if is_finite(loss) else float(np.interp(x_end, x, y))
            yield x_end, loss, f"growth {_grown_shapes(row)}"


def _grown_shapes(row: Mapping[str, Any]) -> str:
    """Returns "6L128H → 24L128H" for a line that holds the map of a growth, otherwise ""."""
    models = (row.get("growth") or {}).get("map")
    if not isinstance(models, Mapping):
        return ""
    shapes = [shape_name(models.get(name)) for name in ("source", "target")]
    return " → ".join(shapes) if all(shapes) else ""


def _draw_growth(axes: Axes, x: float, loss: float, text: str, colour: str, line: int) -> None:
    """Draws a star and a vertical line where a base ends and the grown model starts."""
    low, high = axes.get_ylim()
    axes.axvline(x, color=colour, linestyle=":", linewidth=1.4, zorder=2)
    axes.plot(
        x,
        min(max(loss, low), high),
        marker="*",
        markersize=15,
        color=colour,
        markeredgecolor="white",
        zorder=5,
        clip_on=False,
    )
    # Just above the axis, where no curve has come down to yet.
    axes.annotate(
        text,
        (x, 0.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5, 4 + 14 * line),
        textcoords="offset points",
        fontsize=10.5,
        color=colour,
    )


def _draw_speedup(axes: Axes, level: Level, unit: float) -> None:
    """Draws an arrow from the baseline's FLOPs to the run's at equal loss."""
    if level.flops_baseline is None or level.flops_run is None:
        return
    baseline, run = level.flops_baseline / unit, level.flops_run / unit
    axes.axhline(level.loss, color="#999999", linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    axes.annotate(
        "",
        xy=(run, level.loss),
        xytext=(baseline, level.loss),
        arrowprops={"arrowstyle": "-|>", "linewidth": 2, "color": "#111111", "shrinkB": 3},
        zorder=6,
    )
    # To the left of both points no curve has come down to this loss yet.
    left = min(baseline, run)
    room_on_the_left = left > 0.22 * axes.get_xlim()[1]
    axes.annotate(
        f"{percent(level.speedup)} speed-up\nat loss {level.loss:.3f}",
        (left if room_on_the_left else (baseline + run) / 2, level.loss),
        xytext=(-6 if room_on_the_left else 0, -6),
        textcoords="offset points",
        ha="right" if room_on_the_left else "center",
        va="top",
        fontsize=12,
        weight="bold",
        color="#111111",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        zorder=6,
    )
