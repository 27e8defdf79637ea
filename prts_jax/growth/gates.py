"""Gates of what growth added: shut at growth, open later, and folded away by exports.

A gate c multiplies what new layers, heads, hidden units and components of the stream give
(`prts_jax.model.inputs.Gates`): 0 at growth, so that the function is kept whatever was drawn, then
linearly up to 1. It is a function of the steps since growth and of the map, no parameter.
Source: Du et al., arXiv 2405.15319, App. A (G_random, after MSG: Yao et al., arXiv 2305.02869).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.widening import NEW
from prts_jax.model.declaration import Declaration
from prts_jax.model.inputs import Gates
from prts_jax.tree import flatten, unflatten

TURNS = {"layers": 0, "mlp": 0, "embed": 1, "heads": 2}
"""In which turn of T steps an axis opens: MSG's order. Key heads open with their query heads."""


def schedule(axes: Iterable[str], steps: int) -> dict[str, tuple[int, int]]:
    """Returns when the gates of axes open: depth and MLP in [0, T), stream [T, 2T), heads [2T, 3T).

    Args:
      axes: those with new positions, of `TURNS`; others have no gates.
      steps: T; 0 for no gates at all.

    Returns:
      Axis → (last step since growth at which its gates are shut, first at which they are open).

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
    """Returns the gates some steps after growth; jit may trace `steps`.

    Args:
      growth_map: what was applied.
      steps: optimizer steps since growth.
    """

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
      growth_map: the last growth.
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


def opening(growth: Sequence[Mapping[str, Any]], step: int, stage_step: int) -> Opening | None:
    """Returns the gates that a lineage goes on with, None where all are open by now.

    Args:
      growth: records of a lineage, oldest first. Only the last growth can have gates that are shut:
        a model with such gates does not grow (`refuse_shut`).
      step: of the lineage.
      stage_step: of the lineage.
    """
    if not growth or not growth[-1]["map"].get("gates"):
        return None
    growth_map = GrowthMap.from_json(growth[-1]["map"])
    found = Opening(growth_map, step - stage_step - growth[-1]["at_step"])
    return found if stage_step < found.end else None


def refuse_shut(
    growth: Sequence[Mapping[str, Any]], step: int, stage_step: int, where: str
) -> None:
    """Refuses to grow a model some of whose gates are not open: the grown one would lose them.

    Args:
      growth: records of its lineage, oldest first.
      step: of the lineage.
      stage_step: of the lineage.
      where: the checkpoint, for the message.

    Raises:
      UserError: names the step at which the last gate is open.
    """
    found = opening(growth, step, stage_step)
    if found is not None:
        raise UserError(
            f"{where}: gates of its growth by {found.growth_map.operator} are open only at step "
            f"{step - stage_step + found.end} (this is step {step}); train it until then, and grow "
            "it after"
        )


def fold_gates(
    params: Mapping[str, Any], gates: Gates | None, declarations: Mapping[str, Declaration]
) -> dict[str, Any]:
    """Returns parameters that give without gates what these give with them.

    Gates of layers, whatever their value, go into the output projections: `(x W) ⊙ c = x (W c)`.
    Open gates of width are factors of one.

    Args:
      params: nested dictionary of arrays, `[layers, …]` where stacked.
      gates: values, not traced; None: all open.
      declarations: path → declaration of each parameter.

    Raises:
      UserError: gates of width that are not open. The model then is one of no width: a tied
        embedding, for one, cannot hold them.
    """
    leaves = flatten(params)
    if gates is None:
        return unflatten(leaves)
    for axis, gate in (("embed", gates.embed_E), ("mlp", gates.mlp_M), ("heads", gates.heads_H)):
        if gate is not None and (least := float(np.asarray(gate).min())) < 1:
            raise UserError(
                f"growth: gates of {axis} are open by {least:.0%} only, and half-open gates of "
                "width cannot be exported; train until they are open, and export that checkpoint"
            )
    if gates.layers_L is not None:
        for path, declaration in declarations.items():
            if declaration.writes_stream:
                shape = (-1, *[1] * (len(declaration.shape) - 1))
                leaves[path] = leaves[path] * np.asarray(gates.layers_L).reshape(shape)
    return unflatten(leaves)
