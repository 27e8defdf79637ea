"""Changes applied while a model is read: resize its vocabulary, fold gates into its weights."""

import dataclasses

import numpy as np

from prts_jax.errors import UserError
from prts_jax.formats.model_source import ModelSource, leaf_layers
from prts_jax.formats.safetensors_files import dtype_named
from prts_jax.growth.gates import layer_factors, opening
from prts_jax.model.architecture import declare


def with_vocab(source: ModelSource, vocab: int) -> ModelSource:
    """Returns a source that pads the vocabulary with zeros to `vocab`, or cuts it; 0 keeps it.

    The logit of a padded entry is 0, so it takes part in the softmax until training lowers it.
    """
    if not vocab or vocab == source.model.vocab:
        return source
    model = dataclasses.replace(source.model, vocab=vocab)
    declarations = declare(model)

    def read(leaf: str, layer: int | None) -> np.ndarray:
        values = source.read(leaf, layer)
        shape = declarations[leaf].layer_shape
        kept = values[tuple(slice(size) for size in shape)]
        return np.pad(kept, [(0, size - had) for size, had in zip(shape, kept.shape, strict=True)])

    return dataclasses.replace(source, model=model, read=read)


def without_gates(source: ModelSource) -> ModelSource:
    """Returns a source without gates that computes the same function.

    Other formats have no gates: the output projections of new layers are multiplied by theirs.

    Raises:
      UserError: width gates are not fully open (`prts_jax.growth.gates.layer_factors`).
    """
    opens = None if source.lineage is None else opening(source.lineage)
    if opens is None or source.lineage is None:
        return source
    try:
        factors = layer_factors(opens.at(source.lineage.stage_step))
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from error
    declarations = declare(source.model)

    def read(leaf: str, layer: int | None) -> np.ndarray:
        values = source.read(leaf, layer)
        if factors is None or not declarations[leaf].writes_stream:
            return values
        return (values * factors[layer]).astype(values.dtype)

    return dataclasses.replace(source, read=read)


def rounded(source: ModelSource, dtype: str) -> ModelSource:
    """Returns a source whose values are rounded to `dtype` while reading; "" rounds nothing."""
    if dtype in ("", "float32") or all(
        source.dtype_of(*leaf) == dtype for leaf in leaf_layers(source.model)
    ):
        return source

    def read(leaf: str, layer: int | None) -> np.ndarray:
        return source.read(leaf, layer).astype(dtype_named(dtype))

    # Another format than "hf": transformers would read the values before rounding.
    return dataclasses.replace(source, format="rounded", read=read)
