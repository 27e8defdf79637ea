"""Checkpoints of lit-gpt and of the paper's code: one .pth file with fused queries, keys, values.

In `attn.attn.weight` each query group fills rows [q … q, k, v]; in `attn.qkv.weight` of newer
versions all queries come first, then all keys, then all values. Source: `GPT` of lit-gpt and
litgpt, and the paper's fork of TinyLlama. torch memory-maps the file and unpickles only tensors.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prts_jax.config import ModelConfig
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError, first_line
from prts_jax.formats.config_json import special_ids_of
from prts_jax.formats.huggingface import commonest_dtype
from prts_jax.formats.litgpt_config import shape_of
from prts_jax.formats.model_source import (
    META_REMEDY,
    ModelSource,
    TensorShape,
    check_shape,
    from_torch,
    leaf_layers,
    torch_shape,
    without_wrappers,
)
from prts_jax.model.architecture import architecture, declare
from prts_jax.paths import as_path, is_remote

WEIGHTS = "lit_model.pth"

GROUPED = "attn.attn.weight"
"""End of the name of a fused tensor whose rows are ordered by query group."""

_FUSED = ("layers/attention/q", "layers/attention/k", "layers/attention/v")


def open_model(path: str, preset_name: str = "") -> ModelSource:
    """Opens a .pth file, or a folder with lit_model.pth and a config, without reading its weights.

    `preset_name` is that of a single file's shape ("6L2048H", "llama2_7b").

    Raises:
      UserError: torch is not installed; a file is missing or damaged; the file needs pickle; or
        a tensor does not fit the model (names the tensor and both shapes).
    """
    if is_remote(path):
        raise UserError(f"{path}: .pth files are read from local disk; copy it there first")
    root = as_path(path)
    file = root / WEIGHTS if root.is_dir() else root
    model, length = shape_of(root, preset_name)
    tensors = _load(str(file))
    model = _with_rows(model, tensors, str(file))
    declarations = declare(model)
    names = {
        path: next((name for name in spellings if name.format(layer=0) in tensors), spellings[0])
        for path, spellings in architecture(model).lit_gpt.items()
    }
    expected = set()
    for leaf, layer in leaf_layers(model):
        name, shape = names[leaf].format(layer=layer), _stored_shape(leaf, declarations, model)
        stored = tuple(tensors[name].shape) if name in tensors else None
        check_shape(str(file), name, stored, shape)
        expected.add(name)
    for name in sorted(tensors.keys() - expected):
        raise UserError(
            f"{file}: {name}: is no tensor of a Llama of {model.layers} layers, and would be lost; "
            "is the config, or --preset, this model's?"
        )

    def read(leaf: str, layer: int | None) -> np.ndarray:
        tensor, declaration = tensors[names[leaf].format(layer=layer)], declarations[leaf]
        if leaf in _FUSED:
            part = _part_of_groups if names[leaf].endswith(GROUPED) else _part_of_rows
            return from_torch(part(tensor, leaf, model), declaration)
        return from_torch(as_numpy(tensor), declaration)

    dtypes: dict[str, list[str]] = {}
    for leaf, layer in leaf_layers(model):
        dtypes.setdefault(leaf, []).append(_dtype(tensors[names[leaf].format(layer=layer)]))
    special_ids, repeats = special_ids_of(str(file.parent), {})
    return ModelSource(
        format="litgpt",
        path=str(root),
        model=model,
        dtype=commonest_dtype(dtypes),
        dtypes=dtypes,
        tensors=_shapes(tensors),
        read=read,
        length=length,
        folder=str(file.parent),
        special_ids=special_ids,
        repeats=repeats,
    )


def describe(path: str) -> dict[str, TensorShape]:
    """Returns name → tensor of a folder or a .pth file with any model.

    Raises:
      UserError: torch is not installed, or the file is missing, damaged or needs pickle.
    """
    root = as_path(path)
    return _shapes(_load(str(root / WEIGHTS if root.is_dir() else root)))


def as_numpy(tensor: Any) -> np.ndarray:
    """Returns a torch tensor as a NumPy array; bfloat16 is converted by its bits."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def _load(file: str) -> dict[str, Any]:
    """Returns name → memory-mapped tensor, without the prefixes that wrappers add."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{file}: reading .pth files needs torch; pip install 'prts_jax[hf]'"
        ) from None
    import pickle

    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file}: does not exist; name the folder or the file itself") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: holds more than tensors ({first_line(error)}), and unpickling it could run "
            "any code; where you trust it, load it with torch and save its state_dict alone"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{file}: cannot be read ({first_line(error)}); copy it again, and if torch wrote it "
            "before 1.6, save it again"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise UserError(f"{file}: is no state_dict of a model; save model.state_dict() alone")
    return without_wrappers(content, file)


def _shapes(tensors: Mapping[str, Any]) -> dict[str, TensorShape]:
    return {
        name: TensorShape(tuple(tensor.shape), _dtype(tensor), tensor.nbytes)
        for name, tensor in tensors.items()
    }


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _with_rows(model: ModelConfig, tensors: Mapping[str, Any], file: str) -> ModelConfig:
    """Sets the vocabulary to the rows of the stored embedding, which lit-gpt pads."""
    if "tok_embeddings.weight" in tensors:
        raise UserError(f"{file}: is {META_REMEDY}")
    if "model.embed_tokens.weight" in tensors:
        raise UserError(
            f"{file}: holds the tensors of transformers; save the model with save_pretrained and "
            "give that folder with --from=hf"
        )
    [name] = architecture(model).lit_gpt["token_embedding"]
    embedding = tensors.get(name)
    if embedding is None or embedding.ndim != 2:
        check_shape(file, name, None, (model.vocab, model.embed))
    return dataclasses.replace(model, vocab=int(embedding.shape[0]))  # type: ignore[union-attr]


def _stored_shape(
    leaf: str, declarations: Mapping[str, Declaration], model: ModelConfig
) -> tuple[int, ...]:
    if leaf in _FUSED:
        return ((model.heads + 2 * model.kv_heads) * model.head_dim, model.embed)
    return torch_shape(declarations[leaf])


def _part_of_groups(tensor: Any, leaf: str, model: ModelConfig) -> np.ndarray:
    """Returns the rows of q, k or v as `[out, in]`, without reading the other rows."""
    queries = model.heads // model.kv_heads
    groups = tensor.reshape(model.kv_heads, queries + 2, model.head_dim, model.embed)
    rows: dict[str, Callable[[], Any]] = {
        "layers/attention/q": lambda: groups[:, :queries],
        "layers/attention/k": lambda: groups[:, queries],
        "layers/attention/v": lambda: groups[:, queries + 1],
    }
    return as_numpy(rows[leaf]().reshape(-1, model.embed))


def _part_of_rows(tensor: Any, leaf: str, model: ModelConfig) -> np.ndarray:
    """Returns the same of a tensor whose queries, keys and values follow one another."""
    queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
    begin = {_FUSED[0]: 0, _FUSED[1]: queries, _FUSED[2]: queries + keys}[leaf]
    return as_numpy(tensor[begin : begin + (queries if leaf == _FUSED[0] else keys)])
