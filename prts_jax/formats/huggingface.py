"""Model folders of Hugging Face transformers: config.json and named tensors.

Tensor names come from the architecture's `prts_jax.model.spec.HuggingFaceNames`. Transformers
stores kernels as [out, in]. Its rotary embeddings pair the same halves as prts_jax, so queries and
keys need no permutation. Source: transformers 4.x and 5.x.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from prts_jax.config import ModelConfig, RopeScaling, check_model
from prts_jax.errors import UserError
from prts_jax.formats import safetensors_files
from prts_jax.formats.model_source import (
    ModelSource,
    TensorShape,
    check_shape,
    is_linear,
    kernel_from_linear,
    layer_shape,
    leaf_layers,
)
from prts_jax.model.architecture import ARCHITECTURES, architecture, declare
from prts_jax.model.spec import HuggingFaceNames
from prts_jax.paths import as_path
from prts_jax.special_ids import SpecialIds, from_values, of_tokenizer, read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

FIELDS = {
    "vocab": "vocab_size",
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
}
"""Field of `ModelConfig` → required key of config.json."""

PER_LAYER = "layer_types"
"""Key with one entry per layer; transformers fills it in when it is absent."""

_IGNORED = (".rotary_emb.inv_freq",)
"""Name endings of computed values that old checkpoints store."""


def tensor_name(model: ModelConfig, path: str, layer: int | None) -> str:
    """Returns the name of a leaf's tensor.

    >>> tensor_name(ModelConfig(), "layers/mlp/up", 3)
    'model.layers.3.mlp.up_proj.weight'
    """
    return architecture(model).hugging_face.tensors[path].format(layer=layer)


def _architecture_of(values: Mapping[str, Any], where: str) -> tuple[str, HuggingFaceNames]:
    """Returns the architecture of `model_type` and its Hugging Face names."""
    by_type = {record.hugging_face.model_type: name for name, record in ARCHITECTURES.items()}
    model_type = values.get("model_type")
    if model_type not in by_type:
        supported = " and ".join(map(repr, by_type))
        raise UserError(f"{where}: model_type is {model_type!r}; only {supported} can be converted")
    name = by_type[model_type]
    return name, ARCHITECTURES[name].hugging_face


def read_config(values: Mapping[str, Any], where: str) -> ModelConfig:
    """Reads a config.json.

    Args:
      values: the parsed JSON, with the RoPE keys of transformers 4 or 5.
      where: the file, for messages.

    Raises:
      UserError: the architecture is not supported, a key is missing, or a key has an
        unsupported value that would change the model's output.
    """
    name, names = _architecture_of(values, where)
    for key, allowed in names.fixed.items():
        value = values.get(key, allowed[0])
        for entry in value if isinstance(value, list) else [value]:
            if entry not in allowed:
                raise UserError(f"{where}: {key} is {entry!r}; only {allowed[0]!r} is supported")
    missing = [key for key in FIELDS.values() if key not in values]
    if missing:
        raise UserError(f"{where}: lacks {missing[0]}; fetch the model's own config.json")
    values = {**names.defaults, **values}
    theta, scaling = _rope(values, where)
    try:
        sizes: dict[str, Any] = {ours: int(values[theirs]) for ours, theirs in FIELDS.items()}
        heads = max(sizes["heads"], 1)
        model = ModelConfig(
            **sizes,
            architecture=name,
            kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=int(values.get("head_dim") or sizes["embed"] // heads),
            norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tied=bool(values.get("tie_word_embeddings", False)),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: cannot be read ({error}); fetch it again") from error
    check_model(model, where)
    return model


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling]:
    """Returns theta and scaling: `rope_parameters` (5.x), or `rope_theta` and `rope_scaling`."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    try:
        theta = float(rope.get("rope_theta", values.get("rope_theta", 10000.0)))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return theta, RopeScaling()
        if kind == "llama3":
            return theta, RopeScaling(
                factor=float(rope["factor"]),
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
                original_length=int(rope["original_max_position_embeddings"]),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: RoPE parameters cannot be read ({error!r})") from error
    raise UserError(f"{where}: rope_type is {kind!r}; 'default' and 'llama3' are supported")


def config_json(model: ModelConfig, dtype: str, length: int) -> dict[str, Any]:
    """Returns the values of a config.json, with the RoPE keys of transformers 4 and 5.

    Args:
      model: the shape.
      dtype: of the weights ("bfloat16").
      length: longest sequence.
    """
    scaled = model.rope_scaling.factor != 1.0
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaled:
        rope = {
            "rope_type": "llama3",
            "factor": model.rope_scaling.factor,
            "low_freq_factor": model.rope_scaling.low_freq_factor,
            "high_freq_factor": model.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": model.rope_scaling.original_length,
        }
    names = architecture(model).hugging_face
    return {
        "architectures": [names.model_class],
        "model_type": names.model_type,
        **{theirs: getattr(model, ours) for ours, theirs in FIELDS.items()},
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": rope if scaled else None,
        "rope_parameters": {**rope, "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tied,
        "max_position_embeddings": length,
        **{key: allowed[0] for key, allowed in names.fixed.items() if key != PER_LAYER},
        "torch_dtype": dtype,
        "dtype": dtype,
        "use_cache": True,
    }


def read_config_file(folder: str) -> dict[str, Any]:
    """Returns a folder's parsed config.json.

    Raises:
      UserError: the file is missing or is not a JSON object.
    """
    file = as_path(folder) / CONFIG
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: has no {CONFIG}; name a folder of a model as transformers saves it"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: is damaged ({error}); fetch it again") from error


def special_ids_of(folder: str, config: Mapping[str, Any]) -> tuple[SpecialIds, dict[str, Any]]:
    """Reads the special ids of a folder, in the order in which transformers looks for them.

    generation_config.json comes before config.json; then the tokenizer's files, then the defaults
    of the architecture.

    Args:
      folder: of the model.
      config: the values of its config.json; {} without that file.

    Returns:
      The ids; what an export repeats: "special_ids", those of config.json as they stand there, and
      "generation_config", where the files exist.

    Raises:
      UserError: a file is damaged, or an id is no integer.
    """
    file = as_path(folder) / GENERATION
    repeats: dict[str, Any] = {}
    ids = SpecialIds()
    if file.exists():
        repeats["generation_config"] = read_json(file)
        ids = from_values(repeats["generation_config"], str(file))
    if config:
        repeats["special_ids"] = {key: config[key] for key in ID_KEYS if key in config}
        ids = ids.or_else(from_values(config, str(as_path(folder) / CONFIG)))
    ids = ids.or_else(of_tokenizer(folder))
    defaults = _architecture_of(config, CONFIG)[1].defaults if config else {}
    absent = {key: value for key, value in defaults.items() if key not in config}
    return ids.or_else(from_values(absent, CONFIG)), repeats


def write_json(folder: str, name: str, values: Mapping[str, Any]) -> None:
    """Writes a JSON file in the layout of transformers."""
    (as_path(folder) / name).write_text(json.dumps(values, indent=2) + "\n")


def open_model(folder: str) -> ModelSource:
    """Opens a transformers folder without reading weights.

    Args:
      folder: holds config.json and one or more safetensors files.

    Raises:
      UserError: a file is missing or damaged, or a tensor does not fit the config (names the
        tensor and both shapes).
    """
    folder = str(as_path(folder))
    values = read_config_file(folder)
    model = read_config(values, str(as_path(folder) / CONFIG))
    special_ids, repeats = special_ids_of(folder, values)
    stored = safetensors_files.open_folder(folder)
    declarations = declare(model)
    expected = {}
    for path, layer in leaf_layers(model):
        name, declaration = tensor_name(model, path, layer), declarations[path]
        shape = layer_shape(declaration)
        if is_linear(declaration):
            shape = (math.prod(shape) // declaration.fan_in, declaration.fan_in)
        check_shape(folder, name, stored[name].shape if name in stored else None, shape)
        expected[name] = path
    _refuse_others(folder, stored, expected, model)

    def read(path: str, layer: int | None) -> np.ndarray:
        values = stored[tensor_name(model, path, layer)].read()
        declaration = declarations[path]
        return kernel_from_linear(values, declaration) if is_linear(declaration) else values

    return ModelSource(
        format="hf",
        path=folder,
        model=model,
        dtype=commonest_dtype({name: stored[name].dtype.name for name in expected}),
        tensors={
            name: TensorShape(tensor.shape, tensor.dtype.name, tensor.nbytes)
            for name, tensor in stored.items()
        },
        read=read,
        length=int(values.get("max_position_embeddings") or 0),
        folder=folder,
        special_ids=special_ids,
        repeats=repeats,
    )


def commonest_dtype(dtypes: Mapping[str, str]) -> str:
    """Returns the most frequent dtype; "float32" if there are no tensors."""
    return Counter(dtypes.values()).most_common(1)[0][0] if dtypes else "float32"


def _refuse_others(
    folder: str, stored: Mapping[str, Any], expected: Mapping[str, str], model: ModelConfig
) -> None:
    """Raises UserError for tensors that conversion would drop; a tied model may store its head."""
    copies = {tensor_name(model, "head", None)} if model.tied else set()
    for name in stored:
        if name not in expected and name not in copies and not name.endswith(_IGNORED):
            raise UserError(
                f"{folder}: {name}: is no tensor of a {model.architecture} model of "
                f"{model.layers} layers and would be lost; is config.json this model's?"
            )
