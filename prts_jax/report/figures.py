"""The pictures of a report: validation loss over total FLOPs, tokens, time, and by source."""

import dataclasses
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prts_jax.report.ancestry import seconds_before
from prts_jax.report.comparison import SOURCE, Comparison
from prts_jax.report.runs import Run, shape_name
from prts_jax.report.speedup import Level
from prts_jax.report.table import percent

# Okabe and Ito's palette, told apart with any kind of colour vision; markers say it once more.
BASELINE_COLOUR = "#4d4d4d"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "^", "D", "v", "P", "X")

WIDTH_PIXELS, HEIGHT_PIXELS, DPI = 1000, 560, 100
STYLE: dict[Any, Any] = {
    "font.size": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
}

# Names of neighbouring growths are written above each other.
GROWTH_LINES = 4

# The steep fall of the first steps is cut off, or nothing else could be told apart.
SHOWN_AFTER = 0.1


@dataclasses.dataclass(frozen=True)
class Axis:
    """What runs along the x axis.

    Attributes:
      name: for titles, "total FLOPs".
      key: of the metrics.
      unit: the largest value in sight -> the size of a unit and its name.
    """

    name: str
    key: str
    unit: Callable[[float], tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Look:
    """How a run is drawn, the same in every picture."""

    colour: str
    marker: str
    dashed: bool


def _flops_unit(largest: float) -> tuple[float, str]:
    exponent = 3 * int(math.log10(largest) // 3) if largest >= 1 else 0
    return 10.0**exponent, f"$10^{{{exponent}}}$ FLOPs"


def _tokens_unit(largest: float) -> tuple[float, str]:
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if largest >= size:
            return size, f"{name} tokens"
    return 1.0, "tokens"


def _time_unit(largest: float) -> tuple[float, str]:
    for size, name in ((2 * 86400.0, "days"), (2 * 3600.0, "hours"), (120.0, "minutes")):
        if largest >= size:
            return {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[name], name
    return 1.0, "seconds"


FLOPS = Axis("total FLOPs", "flops", _flops_unit)
TOKENS = Axis("tokens", "tokens", _tokens_unit)
TIME = Axis("training time", "seconds", _time_unit)


def draw_all(comparison: Comparison) -> dict[str, bytes]:
    """Returns the PNG files of a report by name, the main one first.

    There are none while no run has metrics; the one by source needs per-source validation.
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
    """Draws validation loss (training loss where no run has any) over `axis`."""
    key, name = _loss_key(comparison)
    figure = new_figure(HEIGHT_PIXELS)
    axes = figure.subplots()
    _draw_runs(axes, comparison, axis, key, growth=True)
    _, unit = axis.unit(_largest(comparison, axis))
    axes.set_xlabel(f"{axis.name}, ancestors' included ({unit})")
    axes.set_ylabel(f"{name} loss (nats / token)")
    axes.set_title(f"{name.capitalize()} loss over {axis.name}")
    axes.legend(loc="upper right")
    return figure


def over_flops(comparison: Comparison) -> Figure:
    """Draws loss over total FLOPs, with the growth points and the speed-up at equal loss."""
    figure = loss_over(comparison, FLOPS)
    level = best_level(comparison)
    if level is not None:
        axes = figure.axes[0]
        unit, _ = FLOPS.unit(_largest(comparison, FLOPS))
        _draw_speedup(axes, level, unit)
    return figure


def by_source(comparison: Comparison) -> Figure:
    """Draws validation loss over total FLOPs, a panel a source."""
    sources = comparison.sources()
    columns = min(3, len(sources))
    lines = math.ceil(len(sources) / columns)
    figure = new_figure(HEIGHT_PIXELS * (0.2 + 0.6 * lines))
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for panel, source in zip(panels.flat, sources, strict=False):
        _draw_runs(panel, comparison, FLOPS, f"{SOURCE}{source}", growth=False)
        panel.set_title(source, loc="left", fontsize=11.5)
    for panel in panels.flat[len(sources) :]:
        panel.set_visible(False)
    for row in panels:
        row[0].set_ylabel("loss (nats / token)")
    panels.flat[0].legend(loc="upper right", fontsize=9.5)
    _, unit = FLOPS.unit(_largest(comparison, FLOPS))
    figure.supxlabel(f"total FLOPs, ancestors' included ({unit})", fontsize=11.5)
    figure.suptitle("Validation loss by source", x=0.01, ha="left", weight="bold", fontsize=13)
    return figure


def best_level(comparison: Comparison) -> Level | None:
    """Returns the comparison to show: the largest primary speed-up, or, where no run has reached
    the baseline's lowest loss, the largest at the lowest loss that both have reached.
    """  # noqa: D205 - one sentence
    for rank in (0, 1):
        known = [
            levels[rank]
            for levels in comparison.levels.values()
            if len(levels) > rank and levels[rank].speedup is not None
        ]
        if known:
            return max(known, key=lambda level: level.speedup or 0.0)
    return None


def new_figure(height_pixels: float) -> Figure:
    """Returns an empty figure as wide as all of a report's."""
    return Figure(figsize=(WIDTH_PIXELS / DPI, height_pixels / DPI), dpi=DPI, layout="constrained")


def png(figure: Figure) -> bytes:
    """Returns a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _loss_key(comparison: Comparison) -> tuple[str, str]:
    """Validation loss is drawn; training loss where no run has any."""
    if any("validation_loss" in row for run in comparison.runs for row in run.rows):
        return "validation_loss", "validation"
    return "loss", "training"


def _curve(comparison: Comparison, run: Run, axis: Axis, key: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = run.curve(axis.key, key)
    if axis.key == "seconds":
        x = x + (seconds_before(run, comparison.bases) or 0.0)
    return x, y


def _largest(comparison: Comparison, axis: Axis) -> float:
    key, _ = _loss_key(comparison)
    ends = (_curve(comparison, run, axis, key)[0] for run in comparison.runs)
    return max((float(x[-1]) for x in ends if len(x)), default=1.0)


def _looks(comparison: Comparison) -> dict[str, Look]:
    """A base is drawn dashed in the colour of the first run that grew from it."""
    looks: dict[str, Look] = {}
    are_bases = {base.label for base in comparison.bases.values()}
    free = _cycle(list(zip(COLOURS, MARKERS, strict=True)))
    for run in comparison.runs:
        if run is comparison.baseline:
            looks[run.label] = Look(BASELINE_COLOUR, "s", False)
        elif run.label not in are_bases:
            looks[run.label] = Look(*next(free), False)
    for run in comparison.runs:
        look = looks.get(run.label)
        base = comparison.bases.get(run.label)
        while base is not None and look is not None:
            looks.setdefault(base.label, Look(look.colour, look.marker, True))
            base = comparison.bases.get(base.label)
    return looks


def _cycle(looks: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    while True:
        yield from looks


def _draw_runs(axes: Axes, comparison: Comparison, axis: Axis, key: str, growth: bool) -> None:
    looks = _looks(comparison)
    curves = {run.label: _curve(comparison, run, axis, key) for run in comparison.runs}
    unit, _ = axis.unit(_largest(comparison, axis))
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
                label=" ".join(
                    filter(None, [run.label, f"({run.shape()})" if run.shape() else ""])
                ),
                zorder=3,
            )
    low, high = _loss_range(curves)
    axes.set_ylim(low, high)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    marked: set[float] = set()
    for run in comparison.runs if growth else ():
        for at, loss, text in _growths(comparison, run, curves, axis, key):
            if at not in marked:  # one base may have several children
                line = len(marked) % GROWTH_LINES
                _draw_growth(axes, at / unit, loss, text, looks[run.label], line)
            marked.add(at)


def _loss_range(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Returns the losses in sight: every curve but its steep beginning, and where it ends."""
    drawn = [(x, y) for x, y in curves.values() if len(x)]
    if not drawn:
        return 0.0, 1.0
    longest = max(x[-1] - x[0] for x, _ in drawn)
    tails = [np.append(y[x >= x[0] + SHOWN_AFTER * longest], y[-1]) for x, y in drawn]
    low = min(float(y.min()) for _, y in drawn)
    high = max(float(tail.max()) for tail in tails)
    span = max(high - low, 0.02)
    return low - 0.14 * span, high + 0.08 * span


def _growths(
    comparison: Comparison,
    run: Run,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    axis: Axis,
    key: str,
) -> Iterator[tuple[float, float, str]]:
    """Yields where a run grew: x, the loss before, and what became of what."""
    x, y = curves[run.label]
    if not len(x):
        return
    on_the_way = run.growths_on_the_way()
    if run.rows[0].get("growth") if on_the_way else run.grew():
        base, models = comparison.bases.get(run.label), _grown_models(run.rows[0])
        loss, text = float(y[0]), models or f"to {run.shape()}"
        if base is not None and len(curves[base.label][0]):
            loss = float(np.interp(x[0], *curves[base.label]))
            text = models or f"{base.shape()} → {run.shape()}"
        yield float(x[0]), loss, f"growth {text}"
    seconds = seconds_before(run, comparison.bases) or 0.0 if axis.key == "seconds" else 0.0
    for row in on_the_way:
        end = row["previous_stage"]
        at = end[axis.key] + seconds
        loss = end.get(key) or float(np.interp(at, x, y))
        yield at, loss, f"growth {_grown_models(row)}"


def _grown_models(row: Mapping[str, Any]) -> str:
    """Returns "6L128H → 24L128H" of a line that holds the map of a growth, otherwise ""."""
    models = (row.get("growth") or {}).get("map", {})
    if "source" not in models or "target" not in models:
        return ""
    return f"{shape_name(models['source'])} → {shape_name(models['target'])}"


def _draw_growth(axes: Axes, at: float, loss: float, text: str, look: Look, line: int) -> None:
    """Marks the end of the base and the start of the grown model, so that the two read as one."""
    low, high = axes.get_ylim()
    axes.axvline(at, color=look.colour, linestyle=":", linewidth=1.4, zorder=2)
    axes.plot(
        at,
        min(max(loss, low), high),
        marker="*",
        markersize=15,
        color=look.colour,
        markeredgecolor="white",
        zorder=5,
        clip_on=False,
    )
    # Just above the axis, where no curve has come down to yet.
    axes.annotate(
        text,
        (at, 0.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(5, 4 + 14 * line),
        textcoords="offset points",
        fontsize=10.5,
        color=look.colour,
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
    # Before either curve has come down to this loss, nothing is drawn below it.
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
