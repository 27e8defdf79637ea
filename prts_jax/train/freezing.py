"""Frozen parameters with `train.trainable = "new"`: which they are, and how they stay unchanged.

Multi-stage layerwise training (MSLT; Yang et al., "Progressively Stacking 2.0", arXiv 2011.13635):
after growth only the new layers, the final norm and the head are trained. A tied embedding gets the
gradient of its use as the head, but not of its use as the look-up.
"""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax import tree
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import RunConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.train.state import TrainState


def frozen_layers(config: RunConfig, lineage: Lineage) -> tuple[int, ...] | None:
    """Returns the frozen layers of a stage in ascending order; None if all layers are trained.

    Args:
      config: config of the stage.
      lineage: lineage of its parameters; the growth at the start of the stage has the new layers.

    Raises:
      UserError: only new layers are to be trained, and there are none.
    """
    if config.train.trainable == "all":
        return None
    record = lineage.growth_of_stage()
    return layers_kept(record.map if record else None)


def layers_kept(growth_map: GrowthMap | None) -> tuple[int, ...]:
    """Returns the layers of the target that are not new.

    Args:
      growth_map: growth at the start of the stage; None without growth.

    Raises:
      UserError: there are no new layers, or other axes have grown too.
    """
    new = set(growth_map.new_layers()) if growth_map is not None else set()
    if growth_map is None or not new or growth_map.widths or growth_map.matrices is not None:
        raise UserError(
            "config.train.trainable: is 'new', and the stage does not begin with a growth in depth "
            "alone whose layers are copies or fresh, so none is new; set it to 'all'"
        )
    return tuple(layer for layer in range(growth_map.target.layers) if layer not in new)


def trained_parts(
    declarations: Mapping[str, Declaration], frozen: Collection[int]
) -> dict[str, np.ndarray]:
    """Returns path → bool array that broadcasts against the leaf, True where it is trained.

    Leaves without frozen entries are omitted.
    """
    parts = {}
    for path, declaration in declarations.items():
        if declaration.stacked:
            trains = ~np.isin(np.arange(declaration.shape[0]), list(frozen))
            parts[path] = trains.reshape(-1, *[1] * (len(declaration.shape) - 1))
        elif declaration.kind is Kind.TABLE and not declaration.contracts:
            parts[path] = np.zeros((), bool)
    return parts


def keep_frozen(
    before: TrainState, after: TrainState, parts: Mapping[str, np.ndarray]
) -> TrainState:
    """Returns `after` with frozen parameters and their moments taken unchanged from `before`.

    A frozen parameter has no gradient, but weight decay would change it, and decay its moments.
    """
    old, new = tree.named_leaves(before), tree.named_leaves(after)
    kept = []
    for path, leaf in new.items():
        trained = parts.get(tree.parameter_of(path, parts) or "")
        kept.append(leaf if trained is None else jnp.where(trained, leaf, old[path]))
    return jax.tree.unflatten(jax.tree.structure(after), kept)
