"""Relations between runs: the base that each grew from, and the baseline of the comparison."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from prts_jax.errors import UserError, one_line
from prts_jax.report.runs import Run

RELATIVE = 1e-6
"""Tolerance of FLOPs that base and child must agree on: sums are kept in floating point."""


def find_bases(runs: Sequence[Run]) -> dict[str, Run]:
    """Returns, by label of the run that grew, the run among `runs` that it started from.

    A run's config names its source. If that is a checkpoint outside all runs (such as one written
    by `prts grow`), the base is the only run that had spent the same FLOPs after the same tokens.
    """
    bases = {}
    for run in runs:
        others = [other for other in runs if other is not run]
        candidates = [other for other in others if _names(run, other)]
        candidates = candidates or [other for other in others if _passes_through_start(run, other)]
        if len(candidates) == 1:
            bases[run.label] = candidates[0]
    return bases


def _names(run: Run, other: Run) -> bool:
    """Whether `run`'s config starts it from a checkpoint in `other`'s workdir."""
    keys = ("grow_from", "start_from", "branch_from")
    named = next(filter(None, (run.setting("init", key, str) for key in keys)), None)
    if not named:
        return False
    source, workdir = _absolute(named), _absolute(other.workdir)
    return source == workdir or source.startswith((f"{workdir}/", f"{workdir}@"))


def _absolute(path: str) -> str:
    return path.rstrip("/") if "://" in path else os.path.abspath(path)


def _passes_through_start(run: Run, other: Run) -> bool:
    flops, tokens = run.inherited("flops"), run.inherited("tokens")
    other_tokens, other_flops = other.curve("tokens", "flops")
    if not flops or not len(other_tokens) or not other_tokens[0] < tokens <= other_tokens[-1]:
        return False
    return bool(np.isclose(np.interp(tokens, other_tokens, other_flops), flops, rtol=RELATIVE))


def seconds_before(run: Run, bases: Mapping[str, Run]) -> float | None:
    """Returns the wall seconds that the ancestors of `run` trained; None if one is missing."""
    tokens = run.inherited("tokens")
    if not tokens:
        return 0.0
    base = bases.get(run.label)
    if base is None:
        return None
    before = seconds_before(base, bases)
    base_tokens, base_seconds = base.curve("tokens", "seconds")
    if before is None or not len(base_tokens):
        return None
    return before + float(np.interp(tokens, base_tokens, base_seconds))


def find_baseline(
    runs: Sequence[Run], bases: Mapping[str, Run], name: str | None = None
) -> Run | None:
    """Returns the run that the others are measured against, or None if the choice is ambiguous.

    It is the one of the label `name`; by default the only run that neither grew nor is a base, of
    several the only one whose model another run grew into.

    Raises:
      UserError: no run has the label `name`.
    """
    if name is not None:
        for run in runs:
            if run.label == one_line(name):
                return run
        known = ", ".join(run.label for run in runs)
        raise UserError(f"--baseline={name}: no run has this label; the runs are {known}")
    grown_shapes = {run.shape() for run in runs if run.grew()}
    base_labels = {base.label for base in bases.values()}
    scratch = [run for run in runs if not run.grew() and run.label not in base_labels]
    of_a_grown_shape = [run for run in scratch if run.shape() in grown_shapes]
    for candidates in (of_a_grown_shape, scratch):
        if len(candidates) == 1 and len(runs) > 1:
            return candidates[0]
    return None
