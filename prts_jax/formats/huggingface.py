"""Model folders of Hugging Face transformers: named tensors.

Tensor names come from the architecture's `prts_jax.model.spec.HuggingFaceNames`. Transformers
stores kernels as [out, in]. Its rotary embeddings pair the same halves as prts_jax, so queries and
keys need no permutation. Source: transformers 4.x and 5.x.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.formats import config_json, safetensors_files
from prts_jax.formats.model_source import (
    ModelSource,
    TensorShape,
    check_shape,
    from_torch,
    leaf_layers,
    torch_shape,
    without_wrappers,
)
from prts_jax.formats.safetensors_files import StoredTensor
from prts_jax.model.architecture import architecture, declare
from prts_jax.paths import as_path

_COMPUTED = (
    ".rotary_emb.inv_freq",
    ".rotary_emb.cos_cached",
    ".rotary_emb.sin_cached",
    ".masked_bias",
    ".position_ids",
)
"""Name endings of computed values that old checkpoints store; transformers ignores them."""

ADAPTER = "adapter_config.json"


def tensor_name(model: ModelConfig, path: str, layer: int | None) -> str:
    """Returns the name of a leaf's tensor.

    >>> tensor_name(ModelConfig(), "layers/mlp/up", 3)
    'model.layers.3.mlp.up_proj.weight'
    """
    return architecture(model).hugging_face.tensors[path].format(layer=layer)


def open_model(folder: str) -> ModelSource:
    """Opens a transformers folder without reading weights, but for a head beside a tied embedding.

    Raises:
      UserError: a file is missing or damaged, or a tensor does not fit the config (names the
        tensor and both shapes).
    """
    folder = str(as_path(folder))
    where = str(as_path(folder) / config_json.CONFIG)
    values = config_json.read_config_file(folder)
    model = config_json.read_config(values, where)
    special_ids, repeats = config_json.special_ids_of(folder, values)
    repeats["config_dtype"] = config_json.read_dtype(values, where)
    if (as_path(folder) / ADAPTER).exists():
        raise UserError(f"{folder}: holds {ADAPTER}; merge the adapter into the model, save that")
    stored = _under_model_names(safetensors_files.open_folder(folder), folder)
    model, names = _tie(model, stored)
    declarations = declare(model)
    for path, layer in leaf_layers(model):
        name = names(path, layer)
        tensor = stored.get(name)
        if tensor is None:
            _refuse_other_form(folder, name, stored)
        else:
            safetensors_files.check_dtype(name, tensor)
        expected_shape = torch_shape(declarations[path])
        check_shape(folder, name, None if tensor is None else tensor.shape, expected_shape)
    expected = {names(path, layer) for path, layer in leaf_layers(model)}
    _refuse_others(folder, stored, expected, model)

    def read(path: str, layer: int | None) -> np.ndarray:
        return from_torch(stored[names(path, layer)].read(), declarations[path])

    dtypes: dict[str, list[str]] = {}
    for path, layer in leaf_layers(model):
        dtypes.setdefault(path, []).append(stored[names(path, layer)].dtype.name)
    return ModelSource(
        format="hf",
        path=folder,
        model=model,
        dtype=commonest_dtype(dtypes),
        dtypes=dtypes,
        tensors={
            name: TensorShape(tensor.shape, tensor.dtype.name, tensor.nbytes)
            for name, tensor in stored.items()
        },
        read=read,
        length=config_json.read_length(values, where),
        folder=folder,
        special_ids=special_ids,
        repeats=repeats,
    )


def commonest_dtype(dtypes: Mapping[str, Sequence[str]]) -> str:
    """Returns the most frequent dtype of all leaves' layers."""
    return Counter(dtype for layers in dtypes.values() for dtype in layers).most_common(1)[0][0]


def _under_model_names(stored: Mapping[str, StoredTensor], folder: str) -> dict[str, StoredTensor]:
    """Returns the tensors without wrappers' prefixes, and with that of the whole model.

    As in transformers, a file of the model without its head lacks "model.".
    """
    bare = without_wrappers(stored, folder)
    if "embed_tokens.weight" in bare and not any(name.startswith("model.") for name in bare):
        heads = ("lm_head.",)
        bare = {n if n.startswith(heads) else f"model.{n}": t for n, t in bare.items()}
    return bare


def _tie(
    model: ModelConfig, stored: Mapping[str, StoredTensor]
) -> tuple[ModelConfig, Callable[[str, int | None], str]]:
    """Ties the head as transformers does, and names tensors: (leaf path, layer) → name.

    The head is tied only if the file has no other. A tied model whose file holds only the head has
    it as embedding too.
    """
    embedding, head = (
        architecture(model).hugging_face.tensors[path] for path in ("token_embedding", "head")
    )
    if model.tied and embedding in stored and head in stored:
        both = [stored[name] for name in (embedding, head)]
        if both[0].shape != both[1].shape or not _same_values(*both):
            model = dataclasses.replace(model, tied=False)
    only_head = model.tied and head in stored and embedding not in stored

    def name(path: str, layer: int | None) -> str:
        return head if only_head and path == "token_embedding" else tensor_name(model, path, layer)

    return model, name


def _same_values(one: StoredTensor, other: StoredTensor) -> bool:
    first, second = (tensor.read() for tensor in (one, other))
    return bool(np.array_equal(first.astype(np.float32), second.astype(np.float32)))


def _refuse_other_form(folder: str, name: str, stored: Collection[str]) -> None:
    """Raises UserError if a missing tensor is there quantized, adapted or under a wrapper."""
    stem = name.removesuffix(".weight")
    for other in stored:
        if other.startswith(f"{stem}."):
            raise UserError(
                f"{folder}: {name}: is missing, but {other} is there: the model is quantized or "
                "has an adapter; load it in the library that wrote it, undo or merge that, save it"
            )
        if other.endswith(f".{name}"):
            raise UserError(
                f"{folder}: {name}: is missing, but {other} is there: the model is wrapped in "
                "another one; save the inner model alone"
            )


def _refuse_others(
    folder: str, stored: Mapping[str, Any], expected: set[str], model: ModelConfig
) -> None:
    """Raises UserError for tensors that conversion would drop; a tied model may store its head."""
    copies = {tensor_name(dataclasses.replace(model, tied=False), "head", None)}
    for name in stored:
        if name in expected or (model.tied and name in copies) or name.endswith(_COMPUTED):
            continue
        raise UserError(
            f"{folder}: {name}: is no tensor of a {model.architecture} model of "
            f"{model.layers} layers and would be lost; is config.json this model's?"
        )
