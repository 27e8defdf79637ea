"""The figures of a study: loss over FLOPs with bands, speed-ups with intervals, growth close up."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from prts_jax.report.figures import FLOPS
from prts_jax.report.style import (
    BASELINE_COLOUR,
    COLOURS,
    HEIGHT_PIXELS,
    MARKERS,
    legend_name,
    new_figure,
)
from prts_jax.study.compare import Speedup, bound, curve
from prts_jax.study.results import ArmResult, Results

OVER_FLOPS = (
    "Validation loss over total FLOPs, the base's included. Lines are means over seeds, bands "
    "their range. Where learning rates decay, only the ends of runs (dots) are comparable."
)
SPEEDUPS = (
    "Speed-up over scratch at equal loss: mean over seeds and 95% interval; small dots are seeds. "
    "Hollow: the base's FLOPs are left out (sunk)."
)
GROWTH = (
    "The first steps after growth, first seed: training loss, the gradient's norm before it is "
    "clipped, and the norm of the step, the change of the parameters."
)
CLOSE_UP = {
    "loss": "training loss (nats / token)",
    "gradient_norm": "gradient norm",
    "step_norm": "step norm",
}
"""Key of `metrics.jsonl` → its panel in the close-up of a growth."""

DASHES = ("-", "--", ":", "-.")
"""Lines of arms whose colours repeat."""

CLOSE_UP_STEPS = 200
SKIPPED = 0.12
"""Share of the FLOPs at the left whose steep fall is not drawn."""


class Look(NamedTuple):
    """How an arm is drawn: where colours repeat, marker and dashes differ."""

    colour: str
    marker: str
    dashes: str


def _looks(results: Results) -> dict[str, Look]:
    looks = {arm.name: Look(BASELINE_COLOUR, "s", "-") for arm in results.compared("scratch")}
    for at, arm in enumerate(results.compared("grown")):
        turn, colour = divmod(at, len(COLOURS))
        looks[arm.name] = Look(
            COLOURS[colour], MARKERS[turn % len(MARKERS)], DASHES[turn % len(DASHES)]
        )
    return looks


def over_flops(results: Results) -> Figure:
    """Draws validation loss over total FLOPs: mean and range over seeds."""
    figure = new_figure(HEIGHT_PIXELS)
    axes = figure.subplots()
    looks = _looks(results)
    compared = [(arm, *_over_seeds(arm)) for arm in results.compared()]
    size, unit = FLOPS.unit(max((float(flops[-1]) for _, flops, _ in compared), default=1.0))
    lows, highs, right = [], [], 0.0
    for arm, flops, losses in compared:
        flops = flops / size
        look = looks[arm.name]
        axes.plot(
            flops,
            losses.mean(axis=0),
            look.dashes,
            color=look.colour,
            marker=look.marker,
            markevery=[-1],
            linewidth=1.0 if results.finished_only else 1.8,
            label=legend_name(arm.name),
            zorder=3,
        )
        axes.fill_between(
            flops, losses.min(0), losses.max(0), color=look.colour, alpha=0.15, linewidth=0
        )
        lows.append(losses.min())
        highs.append(losses[:, flops >= SKIPPED * flops[-1]].max())
        right = max(right, float(flops[-1]))
    if lows:
        span = max(highs) - min(lows)
        axes.set_ylim(min(lows) - 0.05 * span, max(highs) + 0.05 * span)
        axes.set_xlim(0, 1.03 * right)
        axes.legend(loc="upper right", ncols=2, fontsize=9.5)
    axes.set_xlabel(f"total FLOPs, the base's included ({unit})")
    axes.set_ylabel("validation loss (nats / token)")
    axes.set_title("Validation loss over total FLOPs")
    return figure


def _over_seeds(arm: ArmResult) -> tuple[np.ndarray, np.ndarray]:
    """Returns FLOPs [n] and losses [seeds, n] at the evaluations that all seeds have."""
    curves = [curve(run) for run in arm.runs.values()]
    shared = set.intersection(*(set(c.flops) for c in curves))
    flops = np.array(sorted(shared))
    losses = [c.losses.mean(axis=1)[np.isin(c.flops, flops)] for c in curves]
    return flops, np.stack(losses)


def speedups(results: Results, by_arm: Mapping[str, Speedup]) -> Figure:
    """Draws the speed-up of each grown arm with its interval, the best on top."""

    def known(name: str) -> float:
        booked = by_arm[name].booked
        figures = (booked.mean, booked.at_least, booked.at_most)
        return next((figure for figure in figures if figure is not None), -np.inf)

    names = sorted(by_arm, key=known)
    figure = new_figure(120 + 46 * max(len(names), 2))
    axes = figure.subplots()
    looks = _looks(results)
    for at, name in enumerate(names):
        _draw_speedup(axes, at, by_arm[name], looks[name])
    axes.axvline(0, color=BASELINE_COLOUR, linewidth=1)
    axes.set_yticks(range(len(names)), [legend_name(name) for name in names])
    axes.set_ylim(-0.6, max(len(names), 2) - 0.4)
    axes.set_xlabel("speed-up over scratch at equal loss (%)")
    axes.set_title("Speed-up")
    return figure


def _draw_speedup(axes: Axes, at: int, speedup: Speedup, look: Look) -> None:
    booked, sunk = speedup.booked, speedup.sunk.mean
    colour, marker = look.colour, look.marker
    seeds = [100 * value for value in booked.values if value is not None]
    axes.plot(seeds, [at] * len(seeds), ".", color=colour, alpha=0.6, markersize=5)
    if booked.mean is None:
        axes.text(0, at, f"  {bound(booked)}", va="center", fontsize=9.5)
        return
    if booked.low is not None and booked.high is not None:
        ends = [100 * booked.low, 100 * booked.high]
        axes.plot(ends, [at, at], color=colour, linewidth=2.2, zorder=3)
    axes.plot([100 * booked.mean], [at], marker=marker, color=colour, markersize=8, zorder=4)
    if sunk is not None:
        axes.scatter([100 * sunk], [at + 0.2], marker=marker, edgecolor=colour, facecolor="white")


def growth(results: Results) -> Figure:
    """Draws training loss, gradient and step norm of the steps after growth, for the first seed."""
    figure = new_figure(HEIGHT_PIXELS * 0.75)
    panels: Sequence[Axes] = figure.subplots(1, len(CLOSE_UP))
    looks = _looks(results)
    for arm in results.compared("grown"):
        for axes, key in zip(panels, CLOSE_UP, strict=True):
            assert arm.example is not None, "a compared arm has a run"
            step, values = arm.example.curve("stage_step", key)
            near = step <= CLOSE_UP_STEPS
            look, name = looks[arm.name], legend_name(arm.name)
            axes.plot(step[near], values[near], look.dashes, color=look.colour, label=name)
    for axes, name in zip(panels, CLOSE_UP.values(), strict=True):
        axes.set_xlabel("steps after growth")
        axes.set_title(name, fontsize=10)
    for axes in panels[1:]:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")  # the default writes mathtext, which is off
        axes.yaxis.set_minor_formatter("{x:g}")
    lines = panels[0].get_lines()
    if lines:
        figure.legend(handles=lines, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("After growth", x=0.01, ha="left", weight="bold", fontsize=13)
    return figure
