"""Gates of what growth added: shut at growth, open later, and folded away by exports.

A gate c multiplies what new layers, heads, hidden units and components of the stream give
(`prts_jax.model.inputs.Gates`): 0 at growth, so that the function is kept whatever was drawn, then
linearly up to 1. It is a function of the steps since growth and of the map, no parameter.
Source: Du et al., arXiv 2405.15319, App. A (G_random, after MSG: Yao et al., arXiv 2305.02869).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.widening import NEW
from prts_jax.model.inputs import Gates
from prts_jax.tree import flatten, unflatten

TURNS = {"layers": 0, "mlp": 0, "embed": 1, "heads": 2}
"""In which turn of T steps an axis opens: MSG's order. Key heads open with their query heads."""


def schedule(axes: Iterable[str], steps: int) -> dict[str, tuple[int, int]]:
    """Returns when the gates of axes open: depth and MLP in [0, T), stream [T, 2T), heads [2T, 3T).

    Axes with new positions that are none of `TURNS` have no gates, and none has with 0 steps, T.
    Returns axis → (last step since growth at which its gates are shut, first at which they are
    open).

    Raises:
      UserError: negative steps.
    """
    if steps < 0:
        raise UserError(
            f"growth.gate_steps: is {steps}; give how many steps gates take to open, or 0 for none"
        )
    has_new = set(axes)
    return {
        axis: (turn * steps, (turn + 1) * steps)
        for axis, turn in TURNS.items()
        if steps and axis in has_new
    }


def gates_after(growth_map: GrowthMap, steps: jax.Array | int) -> Gates:
    """Returns the gates some steps after growth; jit may trace `steps`."""

    def vector(axis: str) -> jax.Array | None:
        if axis not in growth_map.gates:
            return None
        begin, end = growth_map.gates[axis]
        openness = jnp.clip((jnp.asarray(steps, jnp.float32) - begin) / (end - begin), 0.0, 1.0)
        index = growth_map.layers if axis == "layers" else growth_map.widths[axis].index
        return jnp.where(np.asarray(index) == NEW, openness, jnp.float32(1))

    return Gates(
        layers_L=vector("layers"),
        embed_E=vector("embed"),
        mlp_M=vector("mlp"),
        heads_H=vector("heads"),
    )


@dataclass(frozen=True)
class Opening:
    """The gates of a model that has grown, from one stage step to the next.

    Attributes:
      before: steps since growth at stage step 0; above 0 where a stage began without growth.
    """

    growth_map: GrowthMap
    before: int = 0

    @property
    def end(self) -> int:
        """First stage step at which all gates are open; not above 0 if they always were."""
        return max(end for _, end in self.growth_map.gates.values()) - self.before

    def at(self, stage_step: jax.Array | int) -> Gates:
        """Returns the gates of a stage step."""
        return gates_after(self.growth_map, stage_step + self.before)


class PastGrowth(Protocol):
    """The part of `prts_jax.checkpoint.records.GrowthRecord` that gates depend on."""

    @property
    def at_step(self) -> int:
        """Step of the lineage at which the model grew."""

    @property
    def map(self) -> GrowthMap:
        """The map that was applied."""


class Past(Protocol):
    """The part of a lineage that gates depend on (`prts_jax.checkpoint.lineage.Lineage`)."""

    @property
    def growth(self) -> Sequence[PastGrowth]:
        """Records of the growths, oldest first."""

    @property
    def step(self) -> int:
        """Steps along the lineage."""

    @property
    def stage_step(self) -> int:
        """Steps since the stage began."""


def opening(past: Past) -> Opening | None:
    """Returns the gates of a lineage's next steps, None where all are open.

    Only the last growth can have gates that are shut: a model with such does not grow
    (`refuse_shut`).
    """
    if not past.growth or not past.growth[-1].map.gates:
        return None
    growth_map = past.growth[-1].map
    opens = Opening(growth_map, past.step - past.stage_step - past.growth[-1].at_step)
    return opens if past.stage_step < opens.end else None


def refuse_shut(past: Past, where: str) -> None:
    """Refuses to grow a model some of whose gates are not open: the grown one would lose them.

    The message names the checkpoint, `where`.

    Raises:
      UserError: names the step at which the last gate is open.
    """
    opens = opening(past)
    if opens is not None:
        raise UserError(
            f"{where}: is at step {past.step}, and gates of its growth by "
            f"{opens.growth_map.operator} are open only at step "
            f"{past.step - past.stage_step + opens.end}; train it until then, and grow it after"
        )


def layer_factors(gates: Gates) -> np.ndarray | None:
    """Returns `[layers]` float32, factors of output projections that stand for all gates.

    None where there is nothing to multiply. Gates of layers may have any value, for
    `(x W) ⊙ c = x (W c)`; gates of width that are open are factors of one.

    Raises:
      UserError: gates of width that are not open. Such a model is between two widths: a tied
        embedding, for one, cannot hold them.
    """
    for axis, gate in (("embed", gates.embed_E), ("mlp", gates.mlp_M), ("heads", gates.heads_H)):
        if gate is not None and (least := float(np.asarray(gate).min())) < 1:
            raise UserError(
                f"growth: gates of {axis} are open by {least:.0%} only, and gates of width cannot "
                "be folded into the weights before they are open; train until then, and use that "
                "checkpoint"
            )
    return None if gates.layers_L is None else np.asarray(gates.layers_L)


def fold_gates(
    params: Mapping[str, Any], gates: Gates | None, declarations: Mapping[str, Declaration]
) -> dict[str, Any]:
    """Returns parameters that give without gates what these give with them; None: all open.

    Raises:
      UserError: see `layer_factors`.
    """
    leaves = flatten(params)
    factors = None if gates is None else layer_factors(gates)
    for path, declaration in declarations.items():
        if factors is not None and declaration.writes_stream:
            shape = (-1, *[1] * (len(declaration.shape) - 1))
            leaves[path] = leaves[path] * factors.reshape(shape)
    return unflatten(leaves)


def fold_current_gates(
    params: Mapping[str, Any], past: Past, declarations: Mapping[str, Declaration]
) -> dict[str, Any]:
    """Returns parameters that give without gates what the model gives at this point of its lineage.

    Raises:
      UserError: see `layer_factors`.
    """
    opens = opening(past)
    gates = None if opens is None else opens.at(past.stage_step)
    return fold_gates(params, gates, declarations)
