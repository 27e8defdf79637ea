"""Conversion of models to and from the checkpoints of prts_jax.

At most two tensors are in memory: one is written while the next is read.
"""

import dataclasses
import math
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.commit import existing_parent, new_checkpoint
from prts_jax.checkpoint.digests import digest_of
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.tokenizer import (
    carry_tokenizer,
    check_tokenizer,
    file_digests,
    holds_tokenizer,
    read_tokenizer,
)
from prts_jax.config import ModelConfig, RunConfig, to_dict
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.formats import config_json, huggingface, litgpt, model_card, safetensors_files
from prts_jax.formats.checkpoint_source import open_checkpoint
from prts_jax.formats.import_transforms import without_gates
from prts_jax.formats.model_source import (
    ModelSource,
    is_linear,
    layer_shape,
    leaf_layers,
    linear_from_kernel,
)
from prts_jax.formats.safetensors_files import NewTensor
from prts_jax.formats.tokenizer_config import complete_tokenizer
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path, is_remote
from prts_jax.special_ids import SpecialIds, of_tokenizer, other_forms

Progress = Callable[[int, int], None]
"""Takes the bytes written so far and the total."""

TARGET_DTYPES = ("float32", "bfloat16", "float16")
CHUNK_BYTES = 2**26
"""Largest chunk of a leaf without layers."""
AT_ONCE = 2
"""Tensors in memory: one is written while the other is read, transposed and hashed."""


@dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion.

    Attributes:
      source_format: "hf", "litgpt" or "orbax".
      target_format: "orbax" or "hf".
      dtype: of the weights written; the most frequent one if they differ.
      dtypes: dtype → number of tensors written in it.
      tensors: number of tensors written; each layer of a stacked leaf counts.
      bytes_written: bytes of values.
      seconds: wall time.
      peak_rss_bytes: peak resident memory of the process.
      tokenizer: names of the tokenizer files copied.
    """

    source_format: str
    target_format: str
    dtype: str
    dtypes: dict[str, int]
    tensors: int
    bytes_written: int
    seconds: float
    peak_rss_bytes: int
    tokenizer: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as a JSON object."""
        return dataclasses.asdict(self) | {"tokenizer": list(self.tokenizer)}


def open_source(
    source_format: str, path: str, preset: str = "", weights: str = layout.PARAMS
) -> ModelSource:
    """Opens a model for conversion, without reading its weights.

    Args:
      source_format: "hf", "litgpt" or "orbax".
      path: a folder, a file, or (orbax) a checkpoint as `layout.resolve` takes it.
      preset: name of the shape of a lit-gpt file without a config.
      weights: of a checkpoint: `PARAMS`, or `EMA` for their moving average.

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


def _check_tokenizer(source: ModelSource, tokenizer: str) -> None:
    """Checks the files of a checkpoint's tokenizer before they are copied."""
    if source.lineage is not None and not tokenizer:
        check_tokenizer(source.path, source.lineage)


def write_checkpoint(
    source: ModelSource, target: str, tokenizer: str = "", progress: Progress | None = None
) -> ConversionReport:
    """Writes a model as a checkpoint of prts_jax: float32, one chunk per layer.

    A foreign model gets a new lineage: step 0, no tokens, no store. Optimizer state and moving
    average of a checkpoint are left behind.

    Args:
      source: what `open_source` returned.
      target: directory of the new checkpoint; must not exist.
      tokenizer: folder or file of its tokenizer; "" takes the files beside the source.
      progress: called after each tensor.

    Raises:
      UserError: the source cannot be read, or see `new_checkpoint`. A failure leaves no files.
    """
    began = time.monotonic()
    target = str(as_path(target))
    declarations = declare(source.model)
    _check_tokenizer(source, tokenizer)
    lineage = _lineage(source, tokenizer)
    move = _Mover(target, source.model, lambda path, layer: "float32", progress)
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


def write_huggingface(
    source: ModelSource,
    target: str,
    dtype: str = "",
    tokenizer: str = "",
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> ConversionReport:
    """Writes a model as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    The folder holds safetensors (with an index if there are several files), config.json, a model
    card with lineage and token count, and the tokenizer's files.

    Args:
      source: what `open_source` returned.
      target: the new folder; must not exist.
      dtype: of the weights; "" keeps that of each tensor.
      tokenizer: folder or file of its tokenizer; "" takes the files beside the source.
      shard_bytes: most bytes of values in one file.
      progress: called after each tensor.

    Raises:
      UserError: the dtype is unknown, the format cannot hold the model, the source cannot be
        read, or see `new_checkpoint` and `without_gates`. A failure leaves no files.
    """
    began = time.monotonic()
    source = without_gates(source)
    if dtype not in ("", *TARGET_DTYPES):
        raise UserError(f"--dtype={dtype}: is none of {', '.join(TARGET_DTYPES)}; name one of them")
    if source.model.layers < 1:
        raise UserError(f"{source.path}: has no layers, and transformers needs one; grow it first")
    if refusal := config_json.refusal(source.model):
        raise UserError(f"{source.path}: {refusal}; grow it to another shape")
    _check_tokenizer(source, tokenizer)
    special_ids = _special_ids(source, tokenizer)
    target = str(as_path(target))
    declarations = declare(source.model)
    move = _Mover(target, source.model, lambda *leaf: dtype or source.dtype_of(*leaf), progress)

    def tensor(path: str, layer: int | None) -> NewTensor:
        declaration, shape = declarations[path], layer_shape(declarations[path])
        if is_linear(declaration):
            shape = (math.prod(shape) // declaration.fan_in, declaration.fan_in)

        def make() -> np.ndarray:
            values = move.read(source, path, layer)
            return linear_from_kernel(values, declaration) if is_linear(declaration) else values

        name = huggingface.tensor_name(source.model, path, layer)
        return NewTensor(name, shape, safetensors_files.dtype_named(move.dtype(path, layer)), make)

    with new_checkpoint(target) as directory:
        carried = carry_tokenizer(tokenizer or source.folder, directory)
        ids = _with_tokenizer(source.special_ids, tokenizer)
        carried += complete_tokenizer(directory, ids, source.length or 2048)
        tensors = [tensor(path, layer) for path, layer in leaf_layers(source.model)]
        safetensors_files.write_folder(directory, tensors, shard_bytes, move.wrote)
        held = dtype or source.repeats.get("config_dtype", source.dtype)
        values = config_json.config_json(source.model, held, source.length or 2048)
        values |= special_ids
        config_json.write_json(directory, config_json.CONFIG, values)
        generation = source.repeats.get("generation_config")
        if generation is not None and config_json.GENERATION not in carried:
            config_json.write_json(directory, config_json.GENERATION, generation)
        (as_path(directory) / "README.md").write_text(
            model_card.write(source, dtype or source.dtype)
        )
    return move.report(source, "hf", began, carried)


def dtypes_written(source: ModelSource, dtype: str) -> set[str]:
    """Returns the dtypes of an export; see `write_huggingface` for `dtype`."""
    return {dtype or source.dtype_of(*leaf) for leaf in leaf_layers(source.model)}


def first_difference(source: ModelSource, target: ModelSource, dtype: str) -> str:
    """Compares two models bit for bit, one tensor at a time, after rounding to `dtype`.

    Args:
      source: a model.
      target: the model written.
      dtype: in which the target was to be written; "" stands for that of each tensor.

    Returns:
      The first difference ("layers/mlp/up, layer 3"); "" if the models are equal.
    """
    for field in dataclasses.fields(source.model):
        ours, theirs = getattr(source.model, field.name), getattr(target.model, field.name)
        if ours != theirs:
            return f"model.{field.name} ({ours} and {theirs})"
    for path, layer in leaf_layers(source.model):
        rounded = safetensors_files.dtype_named(dtype or source.dtype_of(path, layer))
        one, other = source.read(path, layer).astype(rounded), target.read(path, layer)
        if one.dtype != other.dtype or one.shape != other.shape or one.tobytes() != other.tobytes():
            return path if layer is None else f"{path}, layer {layer}"
    return ""


class _Mover:
    """Checks free space, reads tensors in the target's dtype and reports progress."""

    def __init__(
        self,
        target: str,
        model: ModelConfig,
        dtype: Callable[[str, int | None], str],
        progress: Progress | None,
    ) -> None:
        self.dtype, self._progress = dtype, progress
        declarations, leaves = declare(model), leaf_layers(model)
        self._dtypes = Counter(dtype(*leaf) for leaf in leaves)
        self._total = sum(
            math.prod(layer_shape(declarations[path]))
            * safetensors_files.dtype_named(dtype(path, layer)).itemsize
            for path, layer in leaves
        )
        self.done = self.tensors = 0
        free = None if is_remote(target) else shutil.disk_usage(existing_parent(target)).free
        if free is not None and free < self._total * 1.01:
            raise UserError(
                f"{target}: needs {self._total / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; "
                "free space or choose another disk"
            )

    def read(self, source: ModelSource, path: str, layer: int | None) -> np.ndarray:
        values = source.read(path, layer)
        dtype = self.dtype(path, layer)
        target = safetensors_files.dtype_named(dtype)
        with np.errstate(over="ignore"):  # reported below, with the leaf's name
            rounded = np.ascontiguousarray(values, target)
        overflows = dtype == "float16" and not np.isfinite(rounded).all()
        if overflows and np.isfinite(values.astype(np.float32)).all():
            raise UserError(
                f"{source.path}: {path}: holds values beyond the range of float16; choose "
                "--dtype=bfloat16 or float32"
            )
        return rounded

    def wrote(self, count: int) -> None:
        self.done += count
        self.tensors += 1
        if self._progress is not None:
            self._progress(self.done, self._total)

    def report(
        self, source: ModelSource, target_format: str, began: float, tokenizer: list[str]
    ) -> ConversionReport:
        return ConversionReport(
            source_format=source.format,
            target_format=target_format,
            dtype=self._dtypes.most_common(1)[0][0],
            dtypes=dict(self._dtypes),
            tensors=self.tensors,
            bytes_written=self.done,
            seconds=time.monotonic() - began,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            tokenizer=tuple(tokenizer),
        )


def _special_ids(source: ModelSource, tokenizer: str) -> dict[str, Any]:
    """Returns the ids of an exported config.json: those of an import's own, as they stand there."""
    stated: dict[str, Any] | None = source.repeats.get("special_ids")
    if stated is None:
        ids = _with_tokenizer(source.special_ids, tokenizer)
        ends = ids.ends[0] if len(ids.ends) == 1 else list(ids.ends) or None
        stated = {"bos_token_id": ids.begin, "eos_token_id": ends, "pad_token_id": ids.pad}
    pad = stated.get("pad_token_id")
    if pad is not None and pad >= source.model.vocab:
        raise UserError(
            f"{source.path}: pad_token_id is {pad} and the vocabulary has {source.model.vocab} "
            "entries, which transformers refuses; give --vocab a larger number"
        )
    return stated


def _with_tokenizer(ids: SpecialIds, tokenizer: str) -> SpecialIds:
    """Adds the ids of the tokenizer that the user names.

    Raises:
      UserError: there is none.
    """
    if tokenizer and not holds_tokenizer(tokenizer):
        none = "has no tokenizer.json or tokenizer.model; name their folder or one of them"
        raise UserError(f"--tokenizer={tokenizer}: {other_forms(tokenizer) or none}")
    return ids.or_else(of_tokenizer(tokenizer)) if tokenizer else ids


def _lineage(source: ModelSource, tokenizer: str) -> Lineage:
    ids = _with_tokenizer(source.special_ids, tokenizer)
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
