"""The results of a study: curves by arm and seed, speed-ups with intervals, agreement of ranks."""

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
from prts_jax.report.runs import Run, is_finite, read_run
from prts_jax.study.design import Study, final_cells
from prts_jax.study.statistics import METHOD, Curve, Estimate, estimate, rank_agreement

BLOCK = "validation_block/"
"""Prefix of the metrics that hold the loss of one part of the validation text."""

FILE = "study.json"


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """An arm's finished runs.

    Attributes:
      name: of the arm.
      kind: "base", "scratch" or "grown".
      peak: the learning rate that its sweep chose; None while it is not known.
      parameters: of its model.
      published: the paper's loss; None for none.
      runs: by seed.
    """

    name: str
    kind: str
    peak: float | None
    parameters: int
    published: float | None
    runs: Sequence[Run]

    def losses(self) -> list[float]:
        """Returns the last validation loss of each seed; infinite for one that diverged."""
        lasts = [run.last("validation_loss") for run in self.runs]
        return [loss if is_finite(loss) else math.inf for loss in lasts]  # type: ignore[misc]

    def mean_loss(self) -> float | None:
        """Returns the mean over seeds; None without runs."""
        return float(np.mean(self.losses())) if self.runs else None

    def tokens_per_parameter(self) -> float | None:
        """Returns the tokens a parameter that the first seed trained on, its base's included."""
        tokens = self.runs[0].last("tokens") if self.runs else None
        return tokens / self.parameters if tokens else None

    def connection_rate(self) -> float | None:
        """Returns the map's share of neighbouring layers that were neighbours before growth."""
        for row in self.runs[0].rows if self.runs else ():
            record = row.get("growth")
            if isinstance(record, Mapping) and isinstance(record.get("map"), Mapping):
                return GrowthMap.from_json(record["map"]).connection_rate()
        return None


@dataclasses.dataclass(frozen=True)
class Results:
    """A study as far as it has run.

    Attributes:
      title: the study's question.
      finished_only: whether only the ends of runs are comparable.
      seeds: of the study.
      arms: in the study's order.
    """

    title: str
    finished_only: bool
    seeds: Sequence[int]
    arms: Sequence[ArmResult]

    def compared(self) -> list[ArmResult]:
        """Returns the arms that are not bases and have a run."""
        return [arm for arm in self.arms if arm.kind != "base" and arm.runs]

    def scratch(self) -> ArmResult | None:
        """Returns the scratch arm of the most FLOPs."""
        arms = [arm for arm in self.compared() if arm.kind == "scratch"]
        return max(arms, key=lambda arm: arm.runs[0].last("flops") or 0, default=None)

    def speedup(self, arm: ArmResult, sunk: bool = False) -> Estimate:
        """Returns the arm's speed-up over scratch.

        Args:
          arm: a grown arm.
          sunk: whether the base's FLOPs count as spent anyway, and are left out.
        """
        pairs = []
        for at in range(len(arm.runs)):
            scratch = self._scratch_curve(at)
            if scratch is not None:
                method = curve(arm.runs[at], sunk)
                if self.finished_only:
                    method = Curve(method.flops[-1:], method.losses[-1:])
                pairs.append(_equal_blocks(scratch, method))
        return estimate(pairs, self.finished_only)

    def _scratch_curve(self, at: int) -> Curve | None:
        """Returns the scratch curve of one seed; of finished runs only, the ends by FLOPs."""
        arms = [arm for arm in self.compared() if arm.kind == "scratch" and at < len(arm.runs)]
        curves = sorted((curve(arm.runs[at]) for arm in arms), key=lambda c: c.flops[-1])
        if not curves:
            return None
        if not self.finished_only:
            return curves[-1]
        blocks = min(c.losses.shape[1] for c in curves)
        ends = [_blocks(c, blocks).losses[-1] for c in curves]
        return Curve(np.array([c.flops[-1] for c in curves]), np.stack(ends))

    def agreement(self) -> float | None:
        """Returns Kendall's τ between our mean losses and the published ones."""
        known = [arm for arm in self.compared() if arm.published is not None]
        ours = [arm.mean_loss() or math.inf for arm in known]
        return rank_agreement(ours, [arm.published or math.inf for arm in known])

    def probe(self, steps: int) -> float | None:
        """Returns Kendall's τ between the grown arms' losses after `steps` steps and at the end."""
        early, late = [], []
        for arm in self.compared():
            losses = [loss_after(run, steps) for run in arm.runs]
            known = [loss for loss in losses if loss is not None]
            if arm.kind == "grown" and len(known) == len(losses):
                early.append(float(np.mean(known)))
                late.append(arm.mean_loss() or math.inf)
        return rank_agreement(early, late)


def as_json(results: Results, probe: int | None = None) -> dict[str, Any]:
    """Returns the results as plain data without NaN: `arms`, `method`, `kendall_tau`, `probe`."""
    arms = []
    for arm in results.arms:
        values: dict[str, Any] = {
            "name": arm.name,
            "kind": arm.kind,
            "peak": arm.peak,
            "parameters": arm.parameters,
            "tokens_per_parameter": arm.tokens_per_parameter(),
            "connection_rate": arm.connection_rate(),
            "losses": [loss if math.isfinite(loss) else None for loss in arm.losses()],
        }
        if arm.kind == "grown" and arm.runs:
            values["speedup"] = dataclasses.asdict(results.speedup(arm))
            values["speedup_base_sunk"] = dataclasses.asdict(results.speedup(arm, sunk=True))
        arms.append(values)
    return {
        "title": results.title,
        "finished_only": results.finished_only,
        "seeds": list(results.seeds),
        "arms": arms,
        "method": METHOD,
        "kendall_tau": results.agreement(),
        "probe": None if probe is None else {"steps": probe, "tau": results.probe(probe)},
    }


def loss_after(run: Run, steps: int) -> float | None:
    """Returns the first validation loss at `steps` steps of the run or later; None without one."""
    for row in run.rows:
        if is_finite(row.get("validation_loss")) and row.get("stage_step", 0) >= steps:
            return float(row["validation_loss"])
    return None


def curve(run: Run, sunk: bool = False) -> Curve:
    """Returns a run's evaluations over total FLOPs, or over its own FLOPs if `sunk`.

    Raises:
      UserError: it has none after its first step.
    """
    before = run.inherited("flops") if sunk else 0
    points, losses = [], []
    for row in run.rows:
        if not is_finite(row.get("validation_loss")) or not is_finite(row.get("flops")):
            continue
        if row["flops"] - before <= 0:  # no cost yet, so no place on a logarithmic axis
            continue
        blocks = [row[key] for key in sorted(row) if key.startswith(BLOCK)]
        points.append(row["flops"] - before)
        losses.append(blocks or [row["validation_loss"]])
    if not points:
        raise UserError(f"{run.workdir}: has no validation loss; the study needs data.validation")
    fewest = min(map(len, losses))
    table = [values if fewest > 1 else [float(np.mean(values))] for values in losses]
    return Curve(np.array(points, float), np.array(table, float))


def _equal_blocks(one: Curve, other: Curve) -> tuple[Curve, Curve]:
    blocks = min(one.losses.shape[1], other.losses.shape[1])
    return _blocks(one, blocks), _blocks(other, blocks)


def _blocks(of: Curve, blocks: int) -> Curve:
    """Returns the curve itself, or its mean as one block where the numbers of blocks differ."""
    if of.losses.shape[1] == blocks:
        return of
    return Curve(of.flops, of.losses.mean(axis=1, keepdims=True))


def describe(study: Study, losses: Mapping[str, float]) -> dict[str, Any]:
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
                "runs": [cell.name for cell in chosen[arm.name]],
            }
            for arm in study.arms
        ],
    }


def write(study: Study, losses: Mapping[str, float], workdir: str) -> None:
    """Writes `study.json` into a study's folder."""
    text = json.dumps(describe(study, losses), indent=2)
    write_atomically(Path(workdir) / FILE, text + "\n")


def read(workdir: str) -> Results:
    """Reads the results of a study's folder.

    Raises:
      UserError: the folder holds no study, a damaged one, or one whose runs are missing.
    """
    path = Path(workdir) / FILE
    try:
        values = json.loads(path.read_bytes())
        arms = [
            ArmResult(
                name=str(arm["name"]),
                kind=str(arm["kind"]),
                peak=arm["peak"],
                parameters=int(arm["parameters"]),
                published=arm["published"],
                runs=[read_run(str(Path(workdir) / "runs" / run), run) for run in arm["runs"]],
            )
            for arm in values["arms"]
        ]
        return Results(
            str(values["title"]), bool(values["finished_only"]), list(values["seeds"]), arms
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); name the workdir of a `prts study`"
        ) from error
