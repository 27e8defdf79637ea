"""Several seeds of the same runs: mean and range of losses and speed-ups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prts_jax.report import table
from prts_jax.report.comparison import Comparison
from prts_jax.text_table import Table


@dataclass(frozen=True)
class Spread:
    """A figure of several seeds, None where a seed has none."""

    values: Sequence[float | None]

    @property
    def known(self) -> list[float]:
        """Values of the seeds that have one."""
        return [value for value in self.values if value is not None]

    def cell(self, written: Callable[[float | None], str]) -> str:
        """Returns "mean (lowest to highest)", with the number of seeds if some have no value."""
        known = self.known
        if not known:
            return written(None)
        low, mean, high = map(written, (min(known), sum(known) / len(known), max(known)))
        text = f"{mean} ({low} to {high})"
        missing = len(self.values) - len(known)
        return f"{text}, {missing} of {len(self.values)} without" if missing else text

    def to_json(self) -> dict[str, Any]:
        """Returns values, mean, low and high; None where unknown."""
        known = self.known
        mean = sum(known) / len(known) if known else None
        ends = {"low": min(known, default=None), "high": max(known, default=None)}
        return {"values": list(self.values), "mean": mean, **ends}


def spreads(seeds: Sequence[Comparison]) -> dict[str, dict[str, Spread]]:
    """Returns, by label of a run, its "validation_loss", "speedup" and "speedup_6nd"."""
    actual = {}
    for at, run in enumerate(seeds[0].runs):
        of_seeds = [(seed, seed.runs[at]) for seed in seeds]
        levels = [seed.primary(one) for seed, one in of_seeds]
        actual[run.label] = {
            "validation_loss": Spread([one.last("validation_loss") for _, one in of_seeds]),
            "speedup": Spread([level.speedup if level else None for level in levels]),
            "speedup_6nd": Spread([level.speedup_6nd if level else None for level in levels]),
        }
    return actual


def seed_table(seeds: Sequence[Comparison]) -> Table | None:
    """Returns mean and range of each run over its seeds; None for a single seed."""
    if len(seeds) < 2:
        return None
    rows = [
        (
            label,
            of_run["validation_loss"].cell(table.loss),
            of_run["speedup"].cell(table.percent),
            of_run["speedup_6nd"].cell(table.percent),
        )
        for label, of_run in spreads(seeds).items()
    ]
    title = (
        f"Mean and range of {len(seeds)} seeds, each compared with the baseline of the same seed "
        "at its lowest validation loss. The tables and figures below show the first seed."
    )
    return Table(title, ("run", "val. loss", "speed-up", "by 6ND"), rows)


def as_json(seeds: Sequence[Comparison]) -> dict[str, Any]:
    """Returns the seeds' figures by label of the run; {} for a single seed."""
    if len(seeds) < 2:
        return {}
    return {
        label: {name: spread.to_json() for name, spread in of_run.items()}
        for label, of_run in spreads(seeds).items()
    }
