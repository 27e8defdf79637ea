"""Training spans: the parts of a lineage between growths and fine-tuning, with their costs."""

from dataclasses import dataclass
from typing import Any

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import ChangeRecord, GrowthRecord
from prts_jax.config import ModelConfig
from prts_jax.growth.map import GrowthMap


@dataclass(frozen=True)
class TrainingSpan:
    """Training of one model until growth, until fine-tuning, or until the checkpoint.

    Attributes:
      model: the model trained.
      growth: the map that produced it; None for the first span and for fine-tuning.
      learning: cost of learning the map, included in this span; {} if it was not learned.
      fine_tuning: whether fine-tuning on instructions begins here.
      first_step: step of the lineage at which it begins.
      last_step: step of the lineage at which it ends.
      tokens: trained on in this span.
      flops: spent in this span.
      share: fraction of the lineage's FLOPs; 0 if none were spent.
      evaluation: the last evaluation in this span, as in `Lineage.evaluation`; {} if none.
      changes: config changes on resume in this span.
    """

    model: ModelConfig
    growth: GrowthMap | None
    learning: dict[str, Any]
    fine_tuning: bool
    first_step: int
    last_step: int
    tokens: int
    flops: float
    share: float
    evaluation: dict[str, Any]
    changes: tuple[ChangeRecord, ...]


def training_spans(lineage: Lineage) -> list[TrainingSpan]:
    """Returns the training spans of a checkpoint, oldest first; at least one.

    A change at the step where two spans meet belongs to the later span.
    """
    borders = _borders(lineage)
    ends = [*borders[1:], _Border(lineage.step, lineage.tokens, lineage.flops, lineage.evaluation)]
    model = lineage.growth[0].map.source if lineage.growth else lineage.model
    spans = []
    for begin, end in zip(borders, ends, strict=True):
        growth = begin.growth.map if begin.growth else None
        model = growth.target if growth else model
        spans.append(
            TrainingSpan(
                model=model,
                growth=growth,
                learning=(begin.growth and begin.growth.learning) or {},
                fine_tuning=begin.fine_tuning,
                first_step=begin.step,
                last_step=end.step,
                tokens=end.tokens - begin.tokens,
                flops=end.flops - begin.flops,
                share=(end.flops - begin.flops) / lineage.flops if lineage.flops else 0.0,
                evaluation=end.evaluation,
                changes=tuple(
                    change
                    for change in lineage.changes
                    if not change.begins_fine_tuning
                    and begin.step <= change.step
                    and (end is ends[-1] or change.step < end.step)
                ),
            )
        )
    return spans


@dataclass(frozen=True)
class _Border:
    """The start of a span, with the totals of the spans before it."""

    step: int
    tokens: int
    flops: float
    evaluation: dict[str, Any]
    growth: GrowthRecord | None = None
    fine_tuning: bool = False


def _borders(lineage: Lineage) -> list[_Border]:
    """Returns the starts of the spans: step 0, each growth, fine-tuning."""
    grown = [
        _Border(record.at_step, record.tokens, record.flops, record.evaluation or {}, record)
        for record in lineage.growth
    ]
    fine_tuned = [
        _Border(
            change.step,
            change.tokens or 0,
            change.flops or 0.0,
            change.evaluation or {},
            None,
            True,
        )
        for change in lineage.changes
        if change.begins_fine_tuning
    ]
    # The sort is stable: at the same step growth comes before fine-tuning.
    return [_Border(0, 0, 0.0, {}), *sorted((*grown, *fine_tuned), key=lambda border: border.step)]
