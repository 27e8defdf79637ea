"""The model card of an exported model: shape, tokens, FLOPs and lineage."""

from prts_jax.checkpoint.records import WEIGHTS_TAKEN
from prts_jax.formats.model_source import ModelSource
from prts_jax.growth.map import format_ranges
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters


def write(source: ModelSource, dtype: str) -> str:
    """Returns the text of the model's README.md."""
    model, count = source.model, count_parameters(declare(source.model))
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [{model.architecture}, prts_jax]",
        "---",
        "",
        f"# {model.architecture.capitalize()}, {model.layers} layers × {model.embed}",
        "",
        f"{count.total:,} parameters ({count.non_embedding:,} without the embeddings), "
        f"{model.heads} query and {model.kv_heads} key heads of {model.head_dim}, MLP {model.mlp}, "
        f"vocabulary {model.vocab}{', tied embeddings' if model.tied else ''}; weights in {dtype}. "
        "Written by prts_jax.",
        "",
        "## Lineage",
        "",
        *_lineage(source),
    ]
    return "\n".join(lines) + "\n"


def _lineage(source: ModelSource) -> list[str]:
    lineage = source.lineage
    if lineage is None:
        return [f"Converted from {source.format}; what it was trained on is not recorded there."]
    lines = []
    if lineage.imported:
        lines.append(
            f"* Imported from {lineage.imported['format']}; what it had been trained on before is "
            "not in the counts below."
        )
    for record in lineage.growth:
        grown = record.map
        lines.append(
            f"* Grown at step {record.at_step:,} ({record.tokens:,} tokens) by "
            f"`{grown.operator}` from {grown.source.layers} layers × {grown.source.embed} to "
            f"{grown.target.layers} × {grown.target.embed}: layers {format_ranges(grown.layers)}."
        )
    lines.append(
        f"* {lineage.step:,} optimizer steps on {lineage.tokens:,} tokens and "
        f"{lineage.flops:.3e} FLOPs ({lineage.flops_6nd:.3e} by 6·N·D), ancestors included."
    )
    taken = [change.step for change in lineage.changes if change.key == WEIGHTS_TAKEN]
    if lineage.step in taken:
        lines.append("* The weights are the moving average of those that were trained.")
    if lineage.store:
        lines.append(f"* Token store: fingerprint `{lineage.store}`.")
    return lines
