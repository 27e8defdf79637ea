"""Export of a model as a folder of transformers."""

import time
from typing import Any

import numpy as np

from prts_jax.checkpoint.commit import new_checkpoint
from prts_jax.checkpoint.tokenizer import carry_tokenizer
from prts_jax.errors import UserError
from prts_jax.formats import config_json, huggingface, model_card, safetensors_files
from prts_jax.formats.import_transforms import without_gates
from prts_jax.formats.model_source import (
    ModelSource,
    leaf_layers,
    to_torch,
    torch_shape,
)
from prts_jax.formats.safetensors_files import NewTensor
from prts_jax.formats.tokenizer_config import complete_tokenizer
from prts_jax.formats.transfer import (
    ConversionReport,
    Mover,
    Progress,
    check_carried,
    with_tokenizer,
)
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path
from prts_jax.special_ids import SpecialIds

TARGET_DTYPES = ("float32", "bfloat16", "float16")


def write_huggingface(
    source: ModelSource,
    target: str,
    dtype: str = "",
    tokenizer: str = "",
    shard_bytes: int = 5_000_000_000,
    progress: Progress | None = None,
) -> ConversionReport:
    """Writes a model as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    The folder holds safetensors (with an index if there are several files of at most
    `shard_bytes`), config.json, a model card with lineage and token count, and the tokenizer's
    files, by default those beside the source. `dtype` "" keeps that of each tensor.

    Raises:
      UserError: the dtype is unknown, the format cannot hold the model, the source cannot be
        read, or see `new_checkpoint` and `without_gates`. A failure leaves no files.
    """
    began = time.monotonic()
    source = without_gates(source)
    _check(source, dtype)
    check_carried(source, tokenizer)
    ids = with_tokenizer(source.special_ids, tokenizer)
    stated_ids, length = _stated_ids(source, ids), source.length or 2048
    target = str(as_path(target))
    move = Mover(target, source.model, lambda *leaf: dtype or source.dtype_of(*leaf), progress)
    with new_checkpoint(target) as directory:
        carried = carry_tokenizer(tokenizer or source.folder, directory)
        carried += complete_tokenizer(directory, ids, length)
        tensors = _tensors(source, move)
        safetensors_files.write_folder(directory, tensors, shard_bytes, move.wrote)
        held = dtype or source.repeats.get("config_dtype", source.dtype)
        values = config_json.config_json(source.model, held, length) | stated_ids
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


def _check(source: ModelSource, dtype: str) -> None:
    if dtype not in ("", *TARGET_DTYPES):
        raise UserError(f"--dtype={dtype}: is none of {', '.join(TARGET_DTYPES)}; name one of them")
    if source.model.layers < 1:
        raise UserError(f"{source.path}: has no layers, and transformers needs one; grow it first")
    if refusal := config_json.refusal(source.model):
        raise UserError(f"{source.path}: {refusal}; grow it to another shape")


def _tensors(source: ModelSource, move: Mover) -> list[NewTensor]:
    """Returns the tensors of a model in torch's layout, which are read as they are written."""
    declarations = declare(source.model)

    def tensor(path: str, layer: int | None) -> NewTensor:
        declaration = declarations[path]
        name = huggingface.tensor_name(source.model, path, layer)
        dtype = safetensors_files.dtype_named(move.dtype(path, layer))

        def make() -> np.ndarray:
            return to_torch(move.read(source, path, layer), declaration)

        return NewTensor(name, torch_shape(declaration), dtype, make)

    return [tensor(path, layer) for path, layer in leaf_layers(source.model)]


def _stated_ids(source: ModelSource, ids: SpecialIds) -> dict[str, Any]:
    """Returns the ids of an exported config.json: those of an import's own, as they stand there."""
    stated: dict[str, Any] | None = source.repeats.get("special_ids")
    if stated is None:
        ends = ids.ends[0] if len(ids.ends) == 1 else list(ids.ends) or None
        stated = {"bos_token_id": ids.begin, "eos_token_id": ends, "pad_token_id": ids.pad}
    pad = stated.get("pad_token_id")
    if pad is not None and pad >= source.model.vocab:
        raise UserError(
            f"{source.path}: pad_token_id is {pad} and the vocabulary has {source.model.vocab} "
            "entries, which transformers refuses; give --vocab a larger number"
        )
    return stated
