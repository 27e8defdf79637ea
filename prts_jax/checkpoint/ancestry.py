"""The stages of a checkpoint's past: what was trained from one growth to the next, or tuned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.checkpoint.lineage import TUNING, Lineage
from prts_jax.config import ModelConfig, to_dict
from prts_jax.growth.map import GrowthMap


@dataclass(frozen=True)
class Stage:
    """Training of one model, until it grew, until it was fine-tuned on instructions, or until now.

    Attributes:
      model: what was trained.
      growth: the map that made it; None for the first, and for fine-tuning.
      learning: what learning this map took, which counts to this stage; empty if it was not.
      tuning: whether it is the beginning of fine-tuning on instructions.
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
    tuning: bool
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
            "tuning": self.tuning,
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

    What was changed at the very step of a border counts to the stage after it.
    """
    begins = _borders(lineage)
    ends = [*begins[1:], _Border(lineage.step, lineage.tokens, lineage.flops, lineage.evaluation)]
    maps = [GrowthMap.from_json(record["map"]) for record in lineage.growth]
    model = maps[0].source if maps else lineage.model
    found = []
    for begin, end in zip(begins, ends, strict=True):
        growth = None if begin.growth is None else GrowthMap.from_json(begin.growth["map"])
        model = model if growth is None else growth.target
        found.append(
            Stage(
                model=model,
                growth=growth,
                learning=(begin.growth or {}).get("learning", {}),
                tuning=begin.tuning,
                first_step=begin.step,
                last_step=end.step,
                tokens=end.tokens - begin.tokens,
                flops=end.flops - begin.flops,
                share=(end.flops - begin.flops) / lineage.flops if lineage.flops else 0.0,
                evaluation=end.evaluation,
                changes=tuple(
                    change
                    for change in lineage.changes
                    if not _is_tuning(change)
                    and begin.step <= change["step"]
                    and (end is ends[-1] or change["step"] < end.step)
                ),
            )
        )
    return found


@dataclass(frozen=True)
class _Border:
    """Where a stage begins, and what the one before it ended with."""

    step: int
    tokens: int
    flops: float
    evaluation: dict[str, Any]
    growth: Mapping[str, Any] | None = None
    tuning: bool = False


def _borders(lineage: Lineage) -> list[_Border]:
    """The beginnings of the stages: of all, of each growth, of fine-tuning."""
    grown = [
        _Border(
            record["at_step"],
            record["tokens"],
            record["flops"],
            record.get("evaluation", {}),
            growth=record,
        )
        for record in lineage.growth
    ]
    tuned = [
        _Border(
            change["step"], change["tokens"], change["flops"], change["evaluation"], tuning=True
        )
        for change in lineage.changes
        if _is_tuning(change)
    ]
    # The sort is stable: what grows and is tuned at one step grows first.
    return [_Border(0, 0, 0.0, {}), *sorted((*grown, *tuned), key=lambda border: border.step)]


def _is_tuning(change: Mapping[str, Any]) -> bool:
    """Whether it is a beginning, and not a resume that was allowed to change the key."""
    return change["key"] == TUNING and "tokens" in change
