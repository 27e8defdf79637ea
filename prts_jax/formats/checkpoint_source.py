"""A checkpoint of prts_jax as the source of a conversion."""

import dataclasses

import numpy as np

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.damage import reading
from prts_jax.checkpoint.digests import check_paths, digest_of, not_what_was_saved
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import WEIGHTS_TAKEN
from prts_jax.checkpoint.tokenizer import holds_tokenizer, special_ids_of
from prts_jax.formats.model_source import ModelSource, TensorShape

REPEATED = ("special_ids", "generation_config", "config_dtype")
"""Keys of `Lineage.imported` that an export repeats."""


def open_checkpoint(spec: str, weights: str = layout.PARAMS) -> ModelSource:
    """Opens a checkpoint of prts_jax; each layer read is checked against its digest.

    `weights` is `PARAMS`, or `EMA` for their moving average, which the lineage then records.

    Raises:
      UserError: the checkpoint is missing, damaged or without a moving average.
    """
    path = layout.resolve(spec)
    lineage = layout.read_lineage(path)
    layout.check_weights(path, lineage, weights)
    stored, digests = arrays.describe(path, weights), lineage.digests_of(weights)
    check_paths(path, weights, digests, stored)
    if weights == layout.EMA:
        record = lineage.change_record(WEIGHTS_TAKEN, layout.PARAMS, layout.EMA)
        # The evaluation is of the parameters.
        lineage = dataclasses.replace(lineage, changes=(*lineage.changes, record), evaluation={})
    # Weights keep the dtype in which they were imported until they are trained or grown.
    imported = lineage.imported if lineage.step == 0 and not lineage.growth else {}
    dtypes = {path: [_held(one) for one in own] for path, own in imported.get("dtypes", {}).items()}
    repeated = REPEATED if imported else REPEATED[:2]

    def read(leaf: str, layer: int | None) -> np.ndarray:
        where = leaf if layer is None else f"{leaf}, layer {layer}"
        array = arrays.open_leaf(path, leaf, weights)
        with reading(path, weights, f"{path}: {where}"):
            values: np.ndarray = (array if layer is None else array[layer]).read().result()
        if digest_of(values) != digests[leaf][layer or 0]:
            raise not_what_was_saved(path, where, weights)
        return values

    return ModelSource(
        format="orbax",
        path=path,
        model=lineage.model,
        dtype=_held(imported.get("dtype", "float32")),
        dtypes=dtypes,
        tensors={
            name: TensorShape(leaf.shape, leaf.dtype.name, leaf.nbytes)
            for name, leaf in stored.items()
        },
        read=read,
        length=lineage.length,
        folder=_tokenizer_folder(path, lineage),
        lineage=lineage,
        special_ids=special_ids_of(path, lineage),
        repeats={key: lineage.imported[key] for key in repeated if key in lineage.imported},
    )


def _tokenizer_folder(path: str, lineage: Lineage) -> str:
    """Returns the folder of a checkpoint's tokenizer: its own, else its run's token store."""
    own, store = f"{path}/{layout.TOKENIZER}", lineage.config.get("data", {}).get("train", "")
    return own if holds_tokenizer(own) or not store else str(store)


def _held(dtype: str) -> str:
    """Returns the dtype in which a checkpoint holds imported values: float64 is rounded."""
    return "float32" if dtype == "float64" else dtype
