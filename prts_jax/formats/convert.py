"""Conversion of models of any format to checkpoints of prts_jax.

At most two tensors are in memory: one is written while the next is read.
"""

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.commit import new_checkpoint
from prts_jax.checkpoint.digests import digest_of
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.tokenizer import carry_tokenizer, file_digests, read_tokenizer
from prts_jax.config import RunConfig, model_differences, to_dict
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.formats import huggingface, litgpt, safetensors_files
from prts_jax.formats.checkpoint_source import open_checkpoint
from prts_jax.formats.model_source import ModelSource, leaf_layers
from prts_jax.formats.transfer import (
    ConversionReport,
    Mover,
    Progress,
    check_carried,
    with_tokenizer,
)
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path

CHUNK_BYTES = 2**26
"""Largest chunk of a leaf without layers."""
AT_ONCE = 2
"""Tensors in memory: one is written while the other is read, transposed and hashed."""


def open_source(
    source_format: str, path: str, preset: str = "", weights: str = layout.PARAMS
) -> ModelSource:
    """Opens a model in the format hf, litgpt or orbax, without reading its weights.

    `preset` names the shape of a lit-gpt file without a config; `weights` of a checkpoint are
    `PARAMS`, or `EMA` for their moving average.

    Raises:
      UserError: the format is unknown, or the source is missing, damaged or not supported.
    """
    if preset and source_format != "litgpt":
        raise UserError("--preset: only a .pth file lacks its shape; leave it out")
    if weights != layout.PARAMS and source_format != "orbax":
        raise UserError(f"--weights={weights}: only a checkpoint of prts_jax has it; leave it out")
    if source_format == "hf":
        return huggingface.open_model(path)
    if source_format == "litgpt":
        return litgpt.open_model(path, preset)
    if source_format == "orbax":
        return open_checkpoint(path, weights)
    raise UserError(f"--from={source_format}: is none of hf, litgpt, orbax; name one of them")


def write_checkpoint(
    source: ModelSource, target: str, tokenizer: str = "", progress: Progress | None = None
) -> ConversionReport:
    """Writes a model as a checkpoint of prts_jax: float32, one chunk per layer.

    A foreign model gets a new lineage: step 0, no tokens, no store. Optimizer state and moving
    average of a checkpoint are left behind. The tokenizer's files are by default those beside the
    source.

    Raises:
      UserError: the source cannot be read, or see `new_checkpoint`. A failure leaves no files.
    """
    began = time.monotonic()
    target = str(as_path(target))
    declarations = declare(source.model)
    check_carried(source, tokenizer)
    lineage = _lineage(source, tokenizer)
    move = Mover(target, source.model, lambda path, layer: "float32", progress)
    with new_checkpoint(target) as directory:
        digests: dict[str, list[str]] = {path: [] for path in declarations}
        targets = {
            path: arrays.create_leaf(directory, path, declaration, _chunk(declaration))
            for path, declaration in declarations.items()
        }

        def write(path: str, layer: int | None) -> tuple[str, int, str]:
            values = move.read(source, path, layer)
            array = targets[path] if layer is None else targets[path][layer]
            array.write(values, can_reference_source_data_indefinitely=True).result()
            return path, values.nbytes, digest_of(values)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for path, nbytes, digest in pool.map(
                write, *zip(*leaf_layers(source.model), strict=True)
            ):
                digests[path].append(digest)
                move.wrote(nbytes)
        arrays.write_tree(directory, declarations)
        carried = carry_tokenizer(tokenizer or source.folder, f"{directory}/{layout.TOKENIZER}")
        config = {**lineage.config, "model": to_dict(source.model)}
        complete = {path: tuple(layers) for path, layers in digests.items()}
        held = file_digests(read_tokenizer(f"{directory}/{layout.TOKENIZER}"))
        lineage = dataclasses.replace(lineage, config=config, digests=complete, tokenizer=held)
        layout.write_lineage(directory, lineage)
    return move.report(source, "orbax", began, carried)


def first_difference(source: ModelSource, target: ModelSource, dtype: str) -> str:
    """Returns the first difference of two models ("layers/mlp/up, layer 3"); "" if they are equal.

    Compares them bit for bit, one tensor at a time, after rounding the source to `dtype`, in which
    the target was to be written; "" stands for that of each tensor.
    """
    for field, ours, theirs in model_differences(source.model, target.model):
        return f"model.{field} ({ours} and {theirs})"
    for path, layer in leaf_layers(source.model):
        rounded = safetensors_files.dtype_named(dtype or source.dtype_of(path, layer))
        one, other = source.read(path, layer).astype(rounded), target.read(path, layer)
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            return path if layer is None else f"{path}, layer {layer}"
    return ""


def _lineage(source: ModelSource, tokenizer: str) -> Lineage:
    ids = with_tokenizer(source.special_ids, tokenizer)
    if source.lineage is not None:
        return dataclasses.replace(
            source.lineage, special_ids=ids, optimizer_digests={}, ema_digests={}
        )
    mixed = {
        path: list(dtypes)
        for path, dtypes in source.dtypes.items()
        if set(dtypes) != {source.dtype}
    }
    imported = {
        "format": source.format,
        "path": source.path,
        "dtype": source.dtype,
        **({"dtypes": mixed} if mixed else {}),
        "length": source.length,
        **source.repeats,
    }
    return Lineage(
        step=0,
        stage_step=0,
        config=to_dict(RunConfig(model=source.model)),
        position=0,
        tokens=0,
        flops=0,
        flops_6nd=0,
        store="",
        growth=(),
        digests={},
        imported=imported,
        special_ids=ids,
    )


def _chunk(declaration: Declaration) -> tuple[int, ...]:
    """Returns the chunk shape: one layer, or rows of at most `CHUNK_BYTES` if not stacked."""
    if declaration.stacked:
        return (1, *declaration.shape[1:])
    row = math.prod(declaration.shape[1:]) * np.dtype(declaration.dtype).itemsize
    return (max(1, min(declaration.shape[0], CHUNK_BYTES // row)), *declaration.shape[1:])
