"""The tables of a report, as text cells that a terminal and a page show alike."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from prts_jax.report.comparison import SOURCE, Comparison
from prts_jax.report.runs import Run
from prts_jax.report.speedup import Level

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; the first `text_columns` columns are words, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def render(table: Table) -> str:
    """Returns the table as lines of text, its numbers aligned to the right."""
    cells = [list(table.header), *map(list, table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i < table.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([table.title, line(cells[0]), rule, *map(line, cells[1:])])


def run_table(comparison: Comparison) -> Table:
    """Returns one row a run: how far it is, what it cost and what it reached."""
    header = (
        "run",
        "model",
        "state",
        "steps",
        "tokens",
        "FLOPs",
        "of ancestors",
        "train loss",
        "val. loss",
        "val. ppl",
        "speed-up",
        "tokens/s",
        "time",
    )
    rows = [
        (
            run.label,
            run.shape() or MISSING,
            _state(run),
            number(run.last("step")),
            quantity(run.last("tokens")),
            flops(run.last("flops")),
            flops(run.inherited("flops") or None),
            loss(run.last("loss")),
            loss(run.last("validation_loss")),
            _perplexity(run),
            speedup_cell(comparison, run),
            quantity(run.tokens_per_second()),
            duration(run.last("seconds")),
        )
        for run in comparison.runs
    ]
    title = (
        "Runs. Tokens and FLOPs are totals, the ancestors' (base's) included; losses in nats per "
        "token; time and rate are the run's own."
    )
    return Table(title, header, rows, text_columns=3)


def speedup_table(comparison: Comparison) -> Table | None:
    """Returns the speed-up of each run at several losses; None where there is no comparison."""
    baseline = comparison.baseline
    levels = [level for levels in comparison.levels.values() for level in levels]
    if baseline is None or not levels:
        return None
    header = (
        "run",
        "at",
        "val. loss",
        f"FLOPs of {baseline.label}",
        "FLOPs of run",
        "speed-up",
        "by 6ND",
    )
    rows = [
        (
            level.run,
            level.at,
            loss(level.loss),
            _reached(level.flops_baseline),
            _reached(level.flops_run),
            *_speedups(level),
        )
        for level in levels
    ]
    return Table(
        f"Speed-up at equal validation loss against {baseline.label}.", header, rows, text_columns=2
    )


def source_table(comparison: Comparison) -> Table | None:
    """Returns the newest validation loss of each run on each source; None without sources."""
    sources = comparison.sources()
    if not sources:
        return None
    rows = [
        (run.label, *(loss(run.last(f"{SOURCE}{source}")) for source in sources))
        for run in comparison.runs
    ]
    return Table("Validation loss by source, nats per token.", ("run", *sources), rows)


def config_table(comparison: Comparison) -> Table | None:
    """Returns the config keys on which the runs differ; None if they do not."""
    differences = comparison.config_differences()
    if not differences:
        return None
    header = ("key", *(run.label for run in comparison.runs))
    rows = [(key, *map(_value, values)) for key, values in differences.items()]
    return Table("Where the configs differ.", header, rows, text_columns=len(header))


def speedup_cell(comparison: Comparison, run: Run) -> str:
    """Returns the primary speed-up of a run, or in a word why it has none."""
    if run is comparison.baseline:
        return "baseline"
    primary = comparison.primary(run)
    if primary is None:
        return MISSING
    return percent(primary.speedup) if primary.speedup is not None else "not reached"


def _state(run: Run) -> str:
    progress = run.progress()
    if not run.rows:
        return "no metrics yet"
    if run.state == "finished" or progress is None:
        return run.state
    return f"{run.state} at {progress:.0%}"


def _perplexity(run: Run) -> str:
    perplexity = run.last("validation_perplexity")
    return MISSING if perplexity is None else f"{perplexity:.2f}"


def _reached(value: float | None) -> str:
    return "not reached" if value is None else flops(value)


def _speedups(level: Level) -> tuple[str, str]:
    return percent(level.speedup), percent(level.speedup_6nd)


def _value(value: Any) -> str:
    return MISSING if value is None or value == "" else str(value)


def loss(value: float | None) -> str:
    """Returns nats per token to four places."""
    return MISSING if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """Returns a share as signed percent: 0.546 → "+54.6%"."""
    return MISSING if value is None else f"{100 * value:+.1f}%"


def number(value: float | None) -> str:
    """Returns a count with thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def flops(value: float | None) -> str:
    """Returns FLOPs to four digits: 1.234e+18 → "1.234e18"."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(value))
    mantissa = f"{value / 10**exponent:.3f}"
    if mantissa == "10.000":
        mantissa, exponent = "1.000", exponent + 1
    return f"{mantissa}e{exponent}"


def quantity(value: float | None) -> str:
    """Returns a number to three digits with a unit's prefix: 2097152 → "2.10M"."""
    if value is None:
        return MISSING
    for size, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(max(scaled, 1))))}f}{prefix}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Returns seconds as "42 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds is None:
        return MISSING
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
