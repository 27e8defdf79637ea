"""The stages of a checkpoint's past: what was trained from one growth to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig, to_dict
from prts_jax.growth.map import GrowthMap


@dataclass(frozen=True)
class Stage:
    """Training of one model, until it grew or until now.

    Attributes:
      model: what was trained.
      growth: the map that made it; None for the first.
      learning: what learning this map took, which counts to this stage; empty if it was not.
      first_step: step of the lineage at which it began.
      last_step: the last step of it.
      tokens: trained on in this stage.
      flops: spent in this stage.
      share: of the FLOPs of the whole lineage; 0 where nothing was spent yet.
      evaluation: the last one in it, as in `Lineage.evaluation`; {} where there was none.
      changes: made on resume within it, as in `Lineage.changes`.
    """

    model: ModelConfig
    growth: GrowthMap | None
    learning: Mapping[str, Any]
    first_step: int
    last_step: int
    tokens: int
    flops: float
    share: float
    evaluation: dict[str, Any]
    changes: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the stage as JSON would hold it."""
        return {
            "model": to_dict(self.model),
            "growth": None if self.growth is None else self.growth.to_json(),
            "learning": dict(self.learning),
            "first_step": self.first_step,
            "last_step": self.last_step,
            "tokens": self.tokens,
            "flops": self.flops,
            "share": self.share,
            "evaluation": self.evaluation,
            "changes": list(self.changes),
        }


def stages(lineage: Lineage) -> list[Stage]:
    """Returns the stages of a checkpoint's past, oldest first; there is at least one.

    What was changed at the very step of a growth counts to the stage after it.
    """
    maps = [GrowthMap.from_json(record["map"]) for record in lineage.growth]
    models = [*(growth_map.source for growth_map in maps), lineage.model]
    borders = [
        (0, 0, 0.0),
        *((record["at_step"], record["tokens"], record["flops"]) for record in lineage.growth),
        (lineage.step, lineage.tokens, lineage.flops),
    ]
    evaluations = [*(record.get("evaluation", {}) for record in lineage.growth), lineage.evaluation]
    found = []
    for at, model in enumerate(models):
        (first, tokens, flops), (last, tokens_then, flops_then) = borders[at : at + 2]
        is_newest = at == len(models) - 1
        found.append(
            Stage(
                model=model,
                growth=maps[at - 1] if at else None,
                learning=lineage.growth[at - 1].get("learning", {}) if at else {},
                first_step=first,
                last_step=last,
                tokens=tokens_then - tokens,
                flops=flops_then - flops,
                share=(flops_then - flops) / lineage.flops if lineage.flops else 0.0,
                evaluation=evaluations[at],
                changes=tuple(
                    change
                    for change in lineage.changes
                    if first <= change["step"] and (is_newest or change["step"] < last)
                ),
            )
        )
    return found
