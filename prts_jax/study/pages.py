"""The report of a study: tables for the terminal, a page, and its figures."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape

from matplotlib import rc_context

from prts_jax.report import html
from prts_jax.report.style import STYLE, png
from prts_jax.report.table import loss
from prts_jax.study import drawing
from prts_jax.study.compare import Speedup, cell, paper_agreement, probe
from prts_jax.study.results import ArmResult, Results
from prts_jax.study.statistics import METHOD
from prts_jax.text_table import MISSING, Table, render

FINISHED = (
    "Learning rates are not constant here, so only ends of runs are compared: scratch is the curve "
    "through the ends of its runs of several budgets, each with a schedule of its own, and no "
    "figure is read off the middle of a schedule."
)
CONSTANT = (
    "All learning rates are constant after their warm-up, so runs are compared at any point: the "
    "loss is the one at which the scratch run ends."
)


def arm_table(results: Results, by_arm: Mapping[str, Speedup]) -> Table:
    """Returns a row an arm: rate, losses and speed-ups, the base's FLOPs booked and sunk."""

    def losses(arm: ArmResult) -> str:
        known = arm.losses()
        spread = f" ({loss(min(known))} to {loss(max(known))})" if len(known) > 1 else ""
        return loss(arm.mean_loss()) + spread

    def speedup(arm: ArmResult, kind: str) -> str:
        return cell(getattr(by_arm[arm.name], kind)) if arm.name in by_arm else MISSING

    def optional(value: float | None, form: str) -> str:
        return MISSING if value is None else format(value, form)

    columns: dict[str, Callable[[ArmResult], str]] = {
        "arm": lambda arm: arm.name,
        "model": lambda arm: (arm.example and arm.example.shape()) or MISSING,
        "peak rate": lambda arm: optional(arm.peak, "g"),
        "seeds": lambda arm: str(len(arm.runs)),
        "tokens/param.": lambda arm: optional(arm.tokens_per_parameter(), ".2g"),
        "validation loss, mean (range)": losses,
        "speed-up [95%]": lambda arm: speedup(arm, "booked"),
        "base sunk [95%]": lambda arm: speedup(arm, "sunk"),
        "connections": lambda arm: optional(arm.connection_rate(), ".2f"),
    }
    arms = [arm for arm in results.arms if arm.example is not None]
    rows = [tuple(column(arm) for column in columns.values()) for arm in arms]
    return Table(results.title, list(columns), rows, text_columns=2)


def sentences(results: Results, more: Sequence[str] = ()) -> list[str]:
    """Returns what the figures mean, how ranks agree with the paper's, and `more`."""
    lines = [FINISHED if results.finished_only else CONSTANT, METHOD]
    agreement = paper_agreement(results)
    if agreement is not None:
        lines.append(
            f"Rank by final loss against the paper's (arXiv 2405.15319, Figure 3): Kendall's τ = "
            f"{agreement:+.2f} (1: the same order, 0: no relation)."
        )
    lines += more
    missing = [
        f"{arm.name} {len(results.seeds) - ended}"
        for arm in results.arms
        if (ended := len(arm.runs) + len(arm.diverged)) < len(results.seeds)
    ]
    diverged = [f"{arm.name} {len(arm.diverged)}" for arm in results.arms if arm.diverged]
    if diverged:
        lines.append(
            f"Seeds that diverged, at the best rate that was tried: {', '.join(diverged)}."
        )
    if missing:
        lines.append(f"Runs that are missing: {', '.join(missing)}. Figures are preliminary.")
    return lines


def probe_sentence(results: Results, steps: int) -> str:
    """Returns how well the losses after some steps predict the final order of grown arms."""
    tau = probe(results, steps)
    return (
        f"Ranking the grown arms by their loss after {steps} steps predicts their final order with "
        f"Kendall's τ = {MISSING if tau is None else f'{tau:+.2f}'}."
    )


def text(results: Results, by_arm: Mapping[str, Speedup], more: Sequence[str] = ()) -> str:
    """Returns the report for a terminal."""
    paragraphs = [textwrap.fill(line, 100) for line in sentences(results, more)]
    return "\n\n".join([render(arm_table(results, by_arm)), *paragraphs])


def render_page(
    results: Results, by_arm: Mapping[str, Speedup], more: Sequence[str] = ()
) -> tuple[str, dict[str, bytes]]:
    """Returns the page and its figures, PNG files by name, as `html.write` takes them."""
    with rc_context(STYLE):
        figures = {
            "loss_over_flops.png": (png(drawing.over_flops(results)), drawing.OVER_FLOPS),
            "speedups.png": (png(drawing.speedups(results, by_arm)), drawing.SPEEDUPS),
            "growth.png": (png(drawing.growth(results)), drawing.GROWTH),
        }
    losses, speedups, growth = (html.figure(*figure) for figure in figures.values())
    parts = [
        f"<h1>{escape(results.title)}</h1>",
        losses,
        speedups,
        html.table_of(arm_table(results, by_arm)),
        *(f'<p class="definition">{escape(line)}</p>' for line in sentences(results, more)),
        "<h2>The step of growth</h2>",
        growth,
    ]
    pngs = {name: content for name, (content, _) in figures.items()}
    return html.page(results.title, parts), pngs
