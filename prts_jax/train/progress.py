"""Progress of a stage: the state, lineage and gates between two steps, as one value."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import jax

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.growth.gates import Opening
from prts_jax.model.inputs import Gates
from prts_jax.train.state import TrainState


@dataclass(frozen=True)
class Progress:
    """A run between two steps.

    Attributes:
      state: training state on the mesh; a train step donates it.
      lineage: lineage of the state.
      opening: gates that the compiled step opens; None if it has none.
    """

    state: TrainState
    lineage: Lineage
    opening: Opening | None

    @property
    def all_gates_open(self) -> bool:
        """Whether the last gate has opened, so that later steps need none."""
        return self.opening is not None and self.lineage.stage_step >= self.opening.end

    def gates(self) -> Gates | None:
        """Returns the gates of the next step as host values; None if all are open."""
        if self.opening is None or self.all_gates_open:
            return None
        gates: Gates = jax.device_get(self.opening.at(self.lineage.stage_step))
        return gates


class Costs(NamedTuple):
    """Training FLOPs per token: exact, and by the rule 6·N·D; the teacher's included."""

    flops: int
    six_n_d: int


def advance(lineage: Lineage, tokens: int, positions: int, costs: Costs) -> Lineage:
    """Returns the lineage after one more step.

    Args:
      lineage: lineage before the step.
      tokens: tokens of the batch without padding.
      positions: positions of the batch in the data, rows × length.
      costs: FLOPs per token.
    """
    return dataclasses.replace(
        lineage,
        step=lineage.step + 1,
        stage_step=lineage.stage_step + 1,
        position=lineage.position + positions,
        tokens=lineage.tokens + tokens,
        flops=lineage.flops + tokens * costs.flops,
        flops_6nd=lineage.flops_6nd + tokens * costs.six_n_d,
    )
