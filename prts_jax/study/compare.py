"""Arms against scratch: curves of runs, speed-ups with intervals, agreement of ranks."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prts_jax.errors import UserError
from prts_jax.report.runs import Run, is_finite
from prts_jax.report.table import percent
from prts_jax.study.results import ArmResult, Results
from prts_jax.study.statistics import METHOD, Curve, Estimate, estimate, rank_agreement
from prts_jax.text_table import MISSING

BLOCK = "validation_block/"
"""Prefix of the metrics that hold the loss of one part of the validation text."""


@dataclasses.dataclass(frozen=True)
class Speedup:
    """An arm's speed-up over scratch, with the base's FLOPs booked, and without (sunk)."""

    booked: Estimate
    sunk: Estimate


def speedups(results: Results) -> dict[str, Speedup]:
    """Returns the speed-ups of the grown arms by name."""
    return {
        arm.name: Speedup(_speedup(results, arm, sunk=False), _speedup(results, arm, sunk=True))
        for arm in results.compared("grown")
    }


def cell(estimate: Estimate) -> str:
    """Returns "mean [low to high]", or why there is none."""
    if estimate.missing:
        return bound(estimate)
    if estimate.mean is None:
        return MISSING
    if estimate.low is None:
        return f"{percent(estimate.mean)} (no interval)"
    return f"{percent(estimate.mean)} [{percent(estimate.low)} to {percent(estimate.high)}]"


def bound(estimate: Estimate) -> str:
    """Returns "> x" or "< x" of a speed-up without a mean; "not reached" where nothing is known."""
    seeds = f"{estimate.missing} of {len(estimate.values)} seeds"
    if estimate.at_least is not None:
        return f"> {percent(estimate.at_least)} (a bound in {seeds})"
    if estimate.at_most is not None:
        return f"< {percent(estimate.at_most)} (a bound in {seeds})"
    return f"not reached in {seeds}"


def _speedup(results: Results, arm: ArmResult, sunk: bool) -> Estimate:
    pairs: list[tuple[Curve, Curve] | None] = []
    for seed in (*arm.runs, *arm.diverged):
        scratch = _scratch_curve(results, seed)
        if seed in arm.diverged or scratch is None:
            pairs.append(None)
            continue
        method = curve(arm.runs[seed], sunk)
        if results.finished_only:
            method = Curve(method.flops[-1:], method.losses[-1:])
        blocks = min(scratch.losses.shape[1], method.losses.shape[1])
        pairs.append((_in_blocks(scratch, blocks), _in_blocks(method, blocks)))
    return estimate(pairs, results.finished_only)


def _scratch_curve(results: Results, seed: int) -> Curve | None:
    """Returns the longest scratch run's curve; of finished runs only, the ends of all by FLOPs."""
    runs = [arm.runs[seed] for arm in results.compared("scratch") if seed in arm.runs]
    curves = sorted(map(curve, runs), key=lambda c: c.flops[-1])
    if not curves or not results.finished_only:
        return curves[-1] if curves else None
    blocks = min(c.losses.shape[1] for c in curves)
    ends = [_in_blocks(c, blocks).losses[-1] for c in curves]
    return Curve(np.array([c.flops[-1] for c in curves]), np.stack(ends))


def curve(run: Run, sunk: bool = False) -> Curve:
    """Returns a run's evaluations over total FLOPs, or over its own FLOPs if `sunk`.

    Raises:
      UserError: it has none after its first step.
    """
    before = run.inherited("flops") if sunk else 0
    flops, losses = [], []
    for row in run.rows:
        if not is_finite(row.get("validation_loss")) or not is_finite(row.get("flops")):
            continue
        if row["flops"] - before <= 0:  # no cost yet, so no point on a logarithmic axis
            continue
        blocks = [row[key] for key in sorted(row) if key.startswith(BLOCK)]
        flops.append(row["flops"] - before)
        losses.append(blocks or [row["validation_loss"]])
    if not flops:
        raise UserError(f"{run.workdir}: has no validation loss; the study needs data.validation")
    if len(set(map(len, losses))) > 1:
        losses = [[float(np.mean(blocks))] for blocks in losses]
    return Curve(np.array(flops, float), np.array(losses, float))


def _in_blocks(of: Curve, blocks: int) -> Curve:
    """Returns the curve itself, or its mean as one block where the numbers of blocks differ."""
    if of.losses.shape[1] == blocks:
        return of
    return Curve(of.flops, of.losses.mean(axis=1, keepdims=True))


def paper_agreement(results: Results) -> float | None:
    """Returns Kendall's τ between our mean losses and the published ones."""
    pairs = [(arm.mean_loss(), arm.published) for arm in results.compared()]
    known = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    return rank_agreement([ours for ours, _ in known], [theirs for _, theirs in known])


def probe(results: Results, steps: int) -> float | None:
    """Returns Kendall's τ between the grown arms' losses after `steps` steps and at the end."""
    early, late = [], []
    for arm in results.compared("grown"):
        losses = [_loss_after(run, steps) for run in arm.runs.values()]
        known = [loss for loss in losses if loss is not None]
        if len(known) == len(losses):
            early.append(float(np.mean(known)))
            late.append(arm.mean_loss())
    return rank_agreement(early, late)


def _loss_after(run: Run, steps: int) -> float | None:
    """Returns the first validation loss at `steps` steps of the run or later; None without one."""
    for row in run.rows:
        if is_finite(row.get("validation_loss")) and row.get("stage_step", 0) >= steps:
            return float(row["validation_loss"])
    return None


def as_json(results: Results, by_arm: Mapping[str, Speedup], steps: int | None) -> dict[str, Any]:
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
        if arm.name in by_arm:
            values["speedup"] = dataclasses.asdict(by_arm[arm.name].booked)
            values["speedup_base_sunk"] = dataclasses.asdict(by_arm[arm.name].sunk)
        arms.append(values)
    return {
        "title": results.title,
        "finished_only": results.finished_only,
        "seeds": list(results.seeds),
        "arms": arms,
        "method": METHOD,
        "kendall_tau": paper_agreement(results),
        "probe": None if steps is None else {"steps": steps, "tau": probe(results, steps)},
    }
