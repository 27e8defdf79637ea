"""The exponential moving average (EMA) of a run's weights: begun, updated, restored.

After each step, with decay d = `config.optimizer.ema`,

    ema ← d · ema + (1 − d) · weights

It begins as the weights from which the run starts, and grows by their map. Source: Polyak and
Juditsky (1992); Karras et al. (arXiv 2312.02696) on its length.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prts_jax.checkpoint.layout import EMA
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.restore import restore_params
from prts_jax.config import RunConfig
from prts_jax.declaration import Declaration


def begun(config: RunConfig, params: Any) -> Any:
    """Returns a copy of the parameters as the first average; None if the run has none."""
    return jax.tree.map(jnp.copy, params) if config.optimizer.ema else None


def updated(config: RunConfig, ema: Any, params: Any) -> Any:
    """Returns the average after a step.

    Args:
      config: config of the stage.
      ema: average before the step; None: the run has none.
      params: parameters after the step.
    """
    if ema is None:
        return None
    return optax.incremental_update(params, ema, 1 - config.optimizer.ema)


def restored(
    config: RunConfig,
    path: str,
    lineage: Lineage,
    abstract: Mapping[str, Any],
    declarations: Mapping[str, Declaration],
) -> Any:
    """Returns a checkpoint's average; None if the checkpoint or the run has none.

    Args:
      config: config of the stage.
      path: of the checkpoint.
      lineage: of the checkpoint.
      abstract: nested dict of shapes with shardings, of the checkpoint's model.
      declarations: path → declaration of the same parameters.

    Raises:
      DamagedError, StorageError: see `restore_params`.
    """
    if not config.optimizer.ema or not lineage.ema_digests:
        return None
    return restore_params(path, abstract, declarations, lineage=lineage, item=EMA)
