"""A checkpoint's family tree as text: its stages of training, oldest first, and its growths."""

from typing import Any

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.training_spans import TrainingSpan, training_spans
from prts_jax.errors import escaped
from prts_jax.growth.matrices import COST
from prts_jax.text_table import align


def draw(path: str, lineage: Lineage) -> str:
    """Returns the tree: a line for each stage, below the growth or fine-tuning that began it."""
    spans = training_spans(lineage)
    rows = [
        (
            "{layers} layers × {embed}, mlp {mlp}, {heads} heads".format(**vars(stage.model)),
            f"steps {stage.first_step:,} to {stage.last_step:,}",
            f"{stage.tokens:,} tokens",
            f"{stage.flops:.3e} FLOPs",
            f"{stage.share:.1%}",
        )
        for stage in spans
    ]
    lines = [
        f"{path}: {len(spans)} {'stage' if len(spans) == 1 else 'stages'}, "
        f"{lineage.tokens:,} tokens, {lineage.flops:.3e} FLOPs"
    ]
    for stage, row in zip(spans, align(rows), strict=True):
        lines += [*_growth(stage), f"● {row}"]
        if stage.evaluation:
            loss, step = stage.evaluation["validation_loss"], stage.evaluation["step"]
            lines.append(f"│   validation loss {loss:.4f} at step {step:,}")
        lines += [
            f"│   changed at step {change.step:,}: {change.key} {change.from_} → {change.to}"
            for change in stage.changes
        ]
        lines += [
            f"│   branched from {branch.trunk} at step {branch.step:,}"
            for branch in lineage.branches
            if stage.first_step < branch.step <= stage.last_step
        ]
    return "\n".join(map(escaped, lines))


def _growth(stage: TrainingSpan) -> list[str]:
    """Returns the lines above a stage: its growth, its fine-tuning, or a bare trunk."""
    if stage.fine_tuning:
        return ["│", "├─ fine-tuned on instructions", "│"]
    if stage.growth is None:
        return ["│"]
    first, *others = stage.growth.summary().splitlines()
    if stage.learning:
        others.append(_learning(stage.learning))
    return ["│", f"├─ {first}", *(f"│    {line}" for line in others), "│"]


def _learning(learning: dict[str, Any]) -> str:
    """Returns the cost and the losses of learning a growth's matrices."""
    where = f" in {learning['run']}" if "run" in learning else ""
    if COST in learning:
        return f"learned{where}: cost {learning[COST]}"
    return (
        f"learned{where} for {learning['steps']:,} steps: {learning['tokens']:,} tokens, "
        f"{learning['flops']:.3e} FLOPs, loss {learning['first_loss']:.4f} → "
        f"{learning['last_loss']:.4f}"
    )
