"""Records of a lineage: growths, branches, skipped steps and changes of the config."""

from dataclasses import dataclass
from typing import Any

from prts_jax.growth.map import GrowthMap

FINE_TUNING = "data.instructions"
"""Config key that switches from pretraining to fine-tuning on instructions."""

WEIGHTS_TAKEN = "weights"
"""Key of the record that a conversion took another item than the parameters as the weights."""


@dataclass(frozen=True)
class GrowthRecord:
    """A past growth of the model.

    Attributes:
      at_step: step of the lineage at which the model grew.
      tokens: trained on before the growth.
      flops: spent before the growth.
      map: the map applied; the arrays of its matrices are in `Lineage.matrices`.
      learning: {"tokens", "flops", "flops_6nd", …} spent on learning the map, not included in
        `tokens` and `flops`; None for a map that was not learned. If another run learned it, "run"
        is that run's workdir, and "cost" replaces the numbers where they are unknown or counted
        by an earlier growth of this lineage.
      evaluation: the last evaluation before the growth, as in `Lineage.evaluation`, or None.
      optimizer: what became of the optimizer state, as in `init.growth.optimizer`; "" in
        checkpoints of older versions.
    """

    at_step: int
    tokens: int
    flops: float
    map: GrowthMap
    learning: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    optimizer: str = ""


@dataclass(frozen=True)
class BranchRecord:
    """A branch: a run that took the whole state of a checkpoint, its trunk's, to decay from there.

    Attributes:
      step: step of the lineage at which it left the trunk.
      stage_step: steps of the trunk's stage before it.
      stage: index of the trunk's stage in its run.
      tokens: trained on before it.
      flops: spent before it.
      trunk: path of the checkpoint.
    """

    step: int
    stage_step: int
    stage: int
    tokens: int
    flops: float
    trunk: str


@dataclass(frozen=True)
class SkipRecord:
    """A step that changed no parameter: its loss or gradient was not finite, or a spike.

    Attributes:
      step: step of the lineage after it.
      position: of its batch in the data order, tokens.
    """

    step: int
    position: int


@dataclass(frozen=True)
class ChangeRecord:
    """A config key changed on resume, the start of fine-tuning (`FINE_TUNING`), or `WEIGHTS_TAKEN`.

    Attributes:
      step: step of the lineage at which it changed.
      key: dotted name of the key.
      from_: its old value.
      to: its new value.
      tokens: trained on before fine-tuning; None for any other change.
      flops: spent before fine-tuning; None for any other change.
      evaluation: the last evaluation before fine-tuning; None for any other change.
    """

    step: int
    key: str
    from_: Any
    to: Any
    tokens: int | None = None
    flops: float | None = None
    evaluation: dict[str, Any] | None = None

    @property
    def begins_fine_tuning(self) -> bool:
        """Whether fine-tuning begins here; a resume may change the same key without tokens."""
        return self.key == FINE_TUNING and self.tokens is not None
