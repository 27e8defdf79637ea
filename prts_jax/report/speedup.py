"""Speed-up at equal validation loss: the baseline's FLOPs over a run's, minus one.

The paper's measure (Du et al., arXiv 2405.15319, section 4): FLOPs of the scratch run over FLOPs of
the grown run, minus one, with the base's training counted into the grown run.
"""

import dataclasses

import numpy as np

from prts_jax.report.runs import Run

DEFINITION = (
    "Speed-up of a run at a validation loss ℓ = FLOPs(baseline, ℓ) / FLOPs(run, ℓ) − 1. "
    "FLOPs(run, ℓ) are all FLOPs spent, those of every ancestor (the base) included, until the "
    "run's validation loss is first ℓ or lower, linearly interpolated between that evaluation and "
    "the one before it. If a run's first evaluation is already below ℓ, the FLOPs of that "
    "evaluation count. Nothing is extrapolated: a loss that no evaluation attains is “not "
    "reached”. The primary speed-up is at the lowest validation loss of the baseline."
)
FLOPS_DEFINITION = (
    "FLOPs count a training step's matrix products (6 per matmul parameter and token, the output "
    "head included and the embedding look-up not) and causal attention; recomputation (remat), "
    "evaluation and padding are not counted. 6ND is the usual estimate 6 × parameters × tokens."
)

SHARES = (0.25, 0.5, 0.75)
"""Further levels: the baseline's loss after these shares of its FLOPs."""


@dataclasses.dataclass(frozen=True)
class Level:
    """The comparison of a run with the baseline at one validation loss.

    Attributes:
      at: the choice of the loss, in words.
      flops_baseline: total FLOPs at which the baseline first reached it.
      flops_run: the same for the run, its ancestors included; None if it was not reached.
    """

    run: str
    at: str
    loss: float
    flops_baseline: float | None
    flops_run: float | None
    flops_6nd_baseline: float | None
    flops_6nd_run: float | None

    @property
    def speedup(self) -> float | None:
        """FLOPs(baseline) / FLOPs(run) − 1, or None if one of them is unknown."""
        return ratio(self.flops_baseline, self.flops_run)

    @property
    def speedup_6nd(self) -> float | None:
        """The same, counted in 6·N·D."""
        return ratio(self.flops_6nd_baseline, self.flops_6nd_run)


def ratio(flops_baseline: float | None, flops_run: float | None) -> float | None:
    """Returns `flops_baseline / flops_run − 1`; None if either is missing or zero."""
    if not flops_baseline or not flops_run:
        return None
    return flops_baseline / flops_run - 1


def first_crossing(x: np.ndarray, loss: np.ndarray, level: float) -> float | None:
    """Returns the `x` at which `loss` first is `level` or lower; x and loss are [n], x rising.

    The value is interpolated linearly between the first evaluation at or below `level` and the one
    before it; `x[0]` if the first one is already there; None if none is.
    """
    reached = np.flatnonzero(loss <= level)
    if not len(reached):
        return None
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    share = (loss[i - 1] - level) / (loss[i - 1] - loss[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def compare(run: Run, baseline: Run) -> list[Level]:
    """Returns the comparison at several losses, the primary one first.

    The primary loss is the baseline's lowest. The lowest loss that both have reached follows if it
    differs, then, if `rates_are_constant`, the baseline's lowest loss after the `SHARES` of its
    FLOPs. The list is empty if one of the two has no evaluations.
    """
    flops, losses = baseline.curve("flops", "validation_loss")
    _, run_losses = run.curve("flops", "validation_loss")
    if not len(losses) or not len(run_losses):
        return []
    best = float(losses.min())
    levels = [("the baseline's lowest", best)]
    if run_losses.min() > best:
        levels.append(("the lowest of both", float(run_losses.min())))
    end = float(flops[-1])
    for share in reversed(SHARES) if rates_are_constant(run, baseline) else ():
        so_far = float(losses[flops <= share * end].min(initial=losses[0]))
        if levels[-1][1] < so_far < losses[0]:
            levels.append((f"the baseline's at {share:.0%} of its FLOPs", so_far))
    return [_level(run, baseline, at, loss) for at, loss in levels]


def rates_are_constant(*runs: Run) -> bool:
    """Returns whether all runs train at a constant learning rate.

    A decaying rate lowers the loss at its end. In the middle of the baseline's decay its loss is
    still high, and a run that ended its own decay would look fast.
    """
    return all(run.setting("schedule", "kind", str) == "constant" for run in runs)


def _level(run: Run, baseline: Run, at: str, loss: float) -> Level:
    def flops(of: Run, count: str) -> float | None:
        return first_crossing(*of.curve(count, "validation_loss"), loss)

    # The cost of a loss that the baseline starts at or below is unknown.
    _, losses = baseline.curve("flops", "validation_loss")
    known = losses[0] > loss
    return Level(
        run=run.label,
        at=at,
        loss=loss,
        flops_baseline=flops(baseline, "flops") if known else None,
        flops_run=flops(run, "flops"),
        flops_6nd_baseline=flops(baseline, "flops_6nd") if known else None,
        flops_6nd_run=flops(run, "flops_6nd"),
    )
