"""Loss spikes: losses far above those of the steps before, judged inside the train step.

The last losses travel with the training state and are saved in the lineage, so that a resumed run
judges each step as an uninterrupted one. The rule is that of OLMo-core's `SkipStepOptimizer`: a
spike counts in the losses of later steps, whether it is skipped or not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import RunConfig
from prts_jax.mesh import replicated

WINDOW = 100
"""Steps whose losses are the running loss."""

FEWEST = 20
"""Steps of a stage before the first that can be a spike."""

SMALLEST = 1e-3
"""Least deviation, as a share of the mean."""


class Judgement(NamedTuple):
    """A step's loss against the running loss.

    Attributes:
      deviations: float32, distance above the mean of the last losses in standard deviations; 0
        before `FEWEST` losses. None: the run looks for no spikes.
      skip: bool, whether the step is skipped for it.
      losses: float32 [WINDOW], the last losses with this one, for the next step.
    """

    deviations: jax.Array | None
    skip: jax.Array
    losses: jax.Array | None


def running_losses(config: RunConfig, lineage: Lineage, mesh: Mesh) -> jax.Array | None:
    """Returns the last losses of the stage, float32 [WINDOW], NaN before the first.

    Args:
      config: config of the stage; without `train.skip_spikes` and `logging.spike_deviations` the
        result is None.
      lineage: where the stage goes on; its losses count if it is within the stage.
      mesh: of the training state.
    """
    if not config.train.skip_spikes and not config.logging.spike_deviations:
        return None
    kept = lineage.recent_losses[-WINDOW:] if lineage.stage_step else ()
    losses = np.full(WINDOW, np.nan, np.float32)
    losses[WINDOW - len(kept) :] = kept
    return jax.device_put(losses, replicated(mesh))


def to_keep(losses: jax.Array | None) -> tuple[float, ...]:
    """Returns the losses for the lineage, without those before the first."""
    values = np.asarray([] if losses is None else jax.device_get(losses))
    return tuple(float(loss) for loss in values if np.isfinite(loss))


def judge(config: RunConfig, losses: jax.Array | None, loss: jax.Array) -> Judgement:
    """Compares the loss of a step with the last losses.

    Args:
      config: config of the stage.
      losses: float32 [WINDOW] from the state; None: no step is a spike.
      loss: float32 scalar, nats per token; one that is not finite is not counted.
    """
    if losses is None:
        return Judgement(None, jnp.zeros((), bool), None)
    mean, deviation = jnp.nanmean(losses), jnp.nanstd(losses)
    unit = jnp.maximum(jnp.maximum(deviation, SMALLEST * mean), 1e-9)
    enough = jnp.sum(jnp.isfinite(losses)) >= FEWEST
    distance = jnp.where(enough, (loss - mean) / unit, 0.0)
    limit = config.train.skip_spikes
    skip = distance > limit if limit else jnp.zeros((), bool)
    pushed = jnp.append(losses[1:], loss)
    return Judgement(distance, skip, jnp.where(jnp.isfinite(loss), pushed, losses))
