"""The tables of a report, for the terminal and the page."""

import math
import statistics
from typing import Any

from prts_jax.errors import one_line
from prts_jax.heartbeats import host_table
from prts_jax.report.comparison import SOURCE, Comparison
from prts_jax.report.goodput import Goodput, goodput
from prts_jax.report.runs import Run
from prts_jax.text_table import MISSING, Table, duration
from prts_jax.train.metrics import OUTSIDE_STEPS

MOST_STARTS = 20
"""Starts of a run that the table of starts shows, the newest."""


def run_table(comparison: Comparison) -> Table:
    """Returns one row per run: its progress, cost and losses."""
    columns = {
        "run": lambda run: run.label,
        "model": lambda run: run.shape() or MISSING,
        "state": _state,
        "steps": lambda run: number(run.last("step")),
        "tokens": lambda run: quantity(run.last("tokens")),
        "FLOPs": lambda run: flops(run.last("flops")),
        "of ancestors": lambda run: flops(run.inherited("flops") or None),
        "train loss": lambda run: loss(run.last("loss")),
        "val. loss": lambda run: loss(run.last("validation_loss")),
        "val. ppl": _perplexity,
        "speed-up": lambda run: speedup_cell(comparison, run),
        "tokens/s": lambda run: quantity(run.tokens_per_second()),
        "time": lambda run: duration(run.last("seconds")),
    }
    rows = [[cell(run) for cell in columns.values()] for run in comparison.runs]
    title = (
        "Runs. Tokens and FLOPs include those of the ancestors (the base); losses are in nats per "
        "token; time and rate are the run's own."
    )
    return Table(title, list(columns), rows, text_columns=3)


def speedup_table(comparison: Comparison) -> Table | None:
    """Returns the speed-up of each run at several losses; None without a comparison."""
    baseline = comparison.baseline
    levels = [level for levels in comparison.levels.values() for level in levels]
    if baseline is None or not levels:
        return None
    columns = {
        "run": lambda level: level.run,
        "at": lambda level: level.at,
        "val. loss": lambda level: loss(level.loss),
        f"FLOPs of {baseline.label}": lambda level: _reached(level.flops_baseline),
        "FLOPs of run": lambda level: _reached(level.flops_run),
        "speed-up": lambda level: percent(level.speedup),
        "by 6ND": lambda level: percent(level.speedup_6nd),
    }
    title = f"Speed-up at equal validation loss against {baseline.label}."
    rows = [tuple(column(level) for column in columns.values()) for level in levels]
    return Table(title, list(columns), rows, text_columns=2)


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
    return Table("Config keys that differ.", header, rows, text_columns=len(header))


def goodput_table(comparison: Comparison) -> Table | None:
    """Returns the shares of each run's wall time; None if no run has them."""
    spent = [(run.label, goodput(run)) for run in comparison.runs]
    if not any(of_run for _, of_run in spent):
        return None
    ends = ("starts", "first step", "at most")
    header = ("run", "wall time", "steps", *OUTSIDE_STEPS, "other", *ends)
    rows = [(label, *(_goodput_cells(of_run) if of_run else ())) for label, of_run in spent]
    filled = [(*row, *[MISSING] * (len(header) - len(row))) for row in rows]
    return Table(
        "Wall time from the first start to the newest line, and its shares.", header, filled
    )


def start_table(comparison: Comparison) -> Table | None:
    """Returns the newest starts of each run; None if no run has started more than once."""
    starts = {run.label: of_run.starts for run in comparison.runs if (of_run := goodput(run))}
    if not any(len(of_run) > 1 for of_run in starts.values()):
        return None
    rows = [
        (label, number(step), duration(seconds))
        for label, of_run in starts.items()
        for step, seconds in of_run[-MOST_STARTS:]
    ]
    title = f"Starts and new stages, the newest {MOST_STARTS} of each run, by their first line."
    return Table(title, ("run", "step", "to first step"), rows)


def hosts_table(comparison: Comparison) -> Table | None:
    """Returns the last heartbeat of each run's hosts; None without any."""
    beats = [(run.label, beat) for run in comparison.runs for beat in run.hosts]
    return host_table(beats) if beats else None


def speedup_cell(comparison: Comparison, run: Run) -> str:
    """Returns the primary speed-up of a run, or the reason why it has none."""
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
    whole = run.state == "finished" or progress is None
    lost = [f"no metrics from step {number(a)} to {number(b)}" for a, b in run.gaps()]
    return "; ".join([run.state if whole else f"{run.state} at {progress:.0%}", *lost])


def _perplexity(run: Run) -> str:
    perplexity = run.last("validation_perplexity")
    return MISSING if perplexity is None else f"{perplexity:.2f}"


def _goodput_cells(of_run: Goodput) -> list[str]:
    outside = [of_run.outside.get(work) for work in OUTSIDE_STEPS]
    times = [seconds for _, seconds in of_run.starts]
    return [
        duration(of_run.wall),
        *(_share(part, of_run.wall) for part in (of_run.in_steps, *outside, of_run.other)),
        number(len(times)),
        duration(statistics.median(times) if times else None),
        duration(max(times, default=None)),
    ]


def _share(part: float | None, wall: float) -> str:
    return MISSING if part is None else f"{part / wall:.1%}"


def _reached(value: float | None) -> str:
    return "not reached" if value is None else flops(value)


def _value(value: Any) -> str:
    return MISSING if value is None or value == "" else one_line(str(value))


def loss(value: float | None) -> str:
    """Returns nats per token with four decimals."""
    return MISSING if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """Returns a share as signed percent: 0.546 → "+54.6%"."""
    return MISSING if value is None else f"{100 * value:+z.1f}%"


def number(value: float | None) -> str:
    """Returns a count with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def flops(value: float | None) -> str:
    """Returns FLOPs to four digits: 1.234e+18 → "1.234e18"."""
    if value is None:
        return MISSING
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    exponent = math.floor(math.log10(abs(value)))
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
