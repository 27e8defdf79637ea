"""The finished runs of a study, by arm and seed: `study.json` and the runs that it names."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prts_jax.errors import UserError, first_line
from prts_jax.growth.map import GrowthMap
from prts_jax.paths import write_atomically
from prts_jax.report.runs import Run, read_run
from prts_jax.study.design import Losses, Study, final_cells

FILE = "study.json"


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """An arm at the learning rate that its sweep chose.

    Attributes:
      peak: the learning rate; None while it is not known.
      published: the paper's loss; None for none.
      runs: seed → finished run.
      diverged: seeds whose run diverged.
    """

    name: str
    kind: str
    peak: float | None
    parameters: int
    published: float | None
    runs: Mapping[int, Run]
    diverged: Sequence[int] = ()

    @property
    def example(self) -> Run | None:
        """The run of the first seed that has one."""
        return next(iter(self.runs.values()), None)

    def losses(self) -> list[float]:
        """Returns the last validation loss of each seed; infinite for one that diverged."""
        lasts = [run.last("validation_loss") for run in self.runs.values()]
        return [math.inf if loss is None else loss for loss in lasts] + [math.inf] * len(
            self.diverged
        )

    def mean_loss(self) -> float:
        """Returns the mean over seeds; infinite if one diverged or none has run."""
        return float(np.mean(self.losses() or [math.inf]))

    def tokens_per_parameter(self) -> float | None:
        """Returns the tokens a parameter that the model trained on, its base's included."""
        tokens = self.example.last("tokens") if self.example else None
        return tokens / self.parameters if tokens else None

    def connection_rate(self) -> float | None:
        """Returns the map's share of neighbouring layers that were neighbours before growth."""
        grown = self._map()
        return None if grown is None else grown.connection_rate()

    def depth_factor(self) -> float | None:
        """Returns the number of layers after growth over that before; None if it did not grow."""
        grown = self._map()
        return None if grown is None else grown.target.layers / grown.source.layers

    def _map(self) -> GrowthMap | None:
        for row in self.example.rows if self.example else ():
            record = row.get("growth")
            if isinstance(record, Mapping) and isinstance(record.get("map"), Mapping):
                return GrowthMap.from_json(record["map"])
        return None


@dataclasses.dataclass(frozen=True)
class Results:
    """A study as far as it has run.

    Attributes:
      finished_only: whether only the ends of runs are comparable.
      arms: in the study's order.
    """

    title: str
    finished_only: bool
    seeds: Sequence[int]
    arms: Sequence[ArmResult]

    def compared(self, kind: str = "") -> list[ArmResult]:
        """Returns the arms with a run, of one kind or all that are not bases."""
        arms = [arm for arm in self.arms if arm.kind == kind or (not kind and arm.kind != "base")]
        return [arm for arm in arms if arm.runs]


def describe(study: Study, losses: Losses) -> dict[str, Any]:
    """Returns `study.json`: all that a report needs beside the runs themselves."""
    chosen = final_cells(study, losses)
    return {
        "title": study.title,
        "finished_only": study.finished_only,
        "seeds": list(study.seeds),
        "arms": [
            {
                "name": arm.name,
                "kind": arm.kind,
                "published": arm.published,
                "parameters": arm.parameters(),
                "peak": chosen[arm.name][0].peak if chosen[arm.name] else None,
                "runs": [
                    {
                        "seed": cell.seed,
                        "name": cell.name,
                        "diverged": not math.isfinite(losses[cell.name]),
                    }
                    for cell in chosen[arm.name]
                ],
            }
            for arm in study.arms
        ],
    }


def write(study: Study, losses: Losses, workdir: Path) -> None:
    """Writes `study.json` into a study's folder."""
    write_atomically(workdir / FILE, json.dumps(describe(study, losses), indent=2) + "\n")


def read(workdir: str) -> Results:
    """Reads the results of a study's folder.

    Raises:
      UserError: the folder holds no study, a damaged one, or one whose runs are missing.
    """
    path = Path(workdir) / FILE

    def arm(values: Mapping[str, Any]) -> ArmResult:
        ended = {int(run["seed"]): run for run in values["runs"]}
        runs = {
            seed: read_run(str(path.parent / "runs" / str(run["name"])), str(run["name"]))
            for seed, run in ended.items()
            if not run["diverged"]
        }
        diverged = [seed for seed, run in ended.items() if run["diverged"]]
        name, kind = str(values["name"]), str(values["kind"])
        count, published = int(values["parameters"]), values["published"]
        return ArmResult(name, kind, values["peak"], count, published, runs, diverged)

    try:
        values = json.loads(path.read_bytes())
        title, seeds = str(values["title"]), [int(seed) for seed in values["seeds"]]
        return Results(title, bool(values["finished_only"]), seeds, list(map(arm, values["arms"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); name the workdir of a `prts study`"
        ) from error
