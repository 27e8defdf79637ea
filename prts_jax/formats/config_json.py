"""config.json of Hugging Face transformers, read as transformers reads it and written for it.

Types are as strict as those of transformers 5: no text for a number, no 1 for true. Where two keys
contradict each other, the one that transformers takes counts: `rope_scaling` before
`rope_parameters`, theta in either before a `rope_theta` beside them, `dtype` before `torch_dtype`.
Source: transformers 4.x and 5.x.
"""

import json
from collections.abc import Mapping
from typing import Any

from prts_jax.config import ModelConfig, RopeScaling, check_model
from prts_jax.errors import UserError
from prts_jax.formats.json_values import JsonValues
from prts_jax.formats.model_source import refuse_meta
from prts_jax.model.architecture import ARCHITECTURES, architecture
from prts_jax.model.spec import HuggingFaceNames
from prts_jax.paths import as_path
from prts_jax.special_ids import SpecialIds, from_values, of_tokenizer, read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Values of `dtype` that name the dtype of unquantized weights."""

FIELDS = {
    "vocab": "vocab_size",
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
}
"""Field of `ModelConfig` → required key of config.json."""

MAY_BE_NULL = ("num_key_value_heads", "head_dim")
"""Keys whose null is an absent key."""

PER_LAYER = "layer_types"
"""Key with one entry per layer; transformers fills it in when it is absent."""

REFUSED = {
    "quantization_config": "the weights are quantized; convert a model in bfloat16 or float32",
    "per_layer_config": "layers of different shapes are not supported",
    "text_config": "the model is a part of another one; save the language model alone",
    "transformers_weights": "rename its file model.safetensors and remove the key",
}
"""Key that would change the model → what to do; null or an absent key is allowed."""


def read_config_file(folder: str) -> dict[str, Any]:
    """Returns a folder's parsed config.json.

    Raises:
      UserError: the file is missing or is not a JSON object, or the folder is of another format.
    """
    file = as_path(folder) / CONFIG
    if not file.exists():
        refuse_meta(folder)
        raise UserError(
            f"{folder}: has no {CONFIG}; name a folder of a model as transformers saves it"
        )
    return read_json(file)


def write_json(folder: str, name: str, values: Mapping[str, Any]) -> None:
    """Writes a JSON file in the layout of transformers."""
    (as_path(folder) / name).write_text(json.dumps(values, indent=2) + "\n")


def read_config(values: Mapping[str, Any], where: str) -> ModelConfig:
    """Reads the parsed JSON of a config.json, with the RoPE keys of transformers 4 or 5.

    Raises:
      UserError: the architecture is not supported, a key is missing or has another type, or a key
        has an unsupported value that would change the model's output.
    """
    name, names = _architecture_of(values, where)
    for key, remedy in REFUSED.items():
        if values.get(key) is not None:
            raise UserError(f"{where}: has {key}; {remedy}")
    missing = [key for key in FIELDS.values() if key not in values]
    if missing:
        raise UserError(f"{where}: lacks {missing[0]}; fetch the model's own config.json")
    values = {**names.defaults, **values}
    get = JsonValues(values, where, MAY_BE_NULL)
    sizes: dict[str, Any] = {ours: get.integer(theirs) for ours, theirs in FIELDS.items()}
    _check_fixed(values, names, sizes["layers"], where)
    heads, embed = sizes["heads"], sizes["embed"]
    # Transformers derives a head's width where its own default is none.
    derived = None if "head_dim" in names.defaults else embed // max(heads, 1)
    theta, scaling = _rope(values, where)
    model = ModelConfig(
        **sizes,
        architecture=name,
        kv_heads=get.integer("num_key_value_heads", heads),
        head_dim=get.integer("head_dim", derived),
        norm_eps=get.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=get.flag("tie_word_embeddings", False),
    )
    check_model(model, where)
    return model


def read_length(values: Mapping[str, Any], where: str) -> int:
    """Returns the positions that a config.json allows, in tokens.

    Raises:
      UserError: the number is no integer or is not positive.
    """
    names = _architecture_of(values, where)[1]
    length = JsonValues({**names.defaults, **values}, where).integer("max_position_embeddings")
    if length < 1:
        raise UserError(f"{where}: max_position_embeddings is {length}; it must be above 0")
    return length


def read_dtype(values: Mapping[str, Any], where: str) -> str:
    """Returns the dtype in which transformers holds the weights; "" if config.json states none.

    Raises:
      UserError: it is no dtype of weights.
    """
    dtype = values.get("dtype")
    dtype = values.get("torch_dtype") if dtype is None else dtype
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"{where}: dtype is {dtype!r:.80}; it must be one of {', '.join(DTYPES)}")
    return dtype or ""


def config_json(model: ModelConfig, dtype: str, length: int) -> dict[str, Any]:
    """Returns the values of a config.json, with the RoPE keys of transformers 4 and 5.

    `dtype` is that in which transformers holds the weights ("bfloat16"); "" states none.
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
        **({"torch_dtype": dtype, "dtype": dtype} if dtype else {}),
        "use_cache": True,
    }


def refusal(model: ModelConfig) -> str:
    """Returns why transformers refuses a shape; "" if it loads it."""
    names = architecture(model).hugging_face
    if names.heads_divide_width and model.embed % model.heads:
        return (
            f"transformers loads no {names.model_class} whose width is no multiple of its heads "
            f"(embed={model.embed}, heads={model.heads})"
        )
    return ""


def special_ids_of(folder: str, config: Mapping[str, Any]) -> tuple[SpecialIds, dict[str, Any]]:
    """Reads the special ids of a folder, in the order in which transformers looks for them.

    generation_config.json comes before config.json, whose values are `config`; then the tokenizer's
    files, then the defaults of the architecture. Returns what an export repeats, too:
    "special_ids", those of config.json as they stand there, and "generation_config", where the
    files exist.

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


def _architecture_of(values: Mapping[str, Any], where: str) -> tuple[str, HuggingFaceNames]:
    """Returns the architecture of `model_type` and its Hugging Face names."""
    model_type = values.get("model_type")
    for name, record in ARCHITECTURES.items():
        if record.hugging_face.model_type == model_type:
            return name, record.hugging_face
    supported = " and ".join(repr(r.hugging_face.model_type) for r in ARCHITECTURES.values())
    raise UserError(f"{where}: model_type is {model_type!r:.80}; only {supported} can be converted")


def _check_fixed(
    values: Mapping[str, Any], names: HuggingFaceNames, layers: int, where: str
) -> None:
    """Raises UserError for a key whose value our computation does not have."""
    for key, allowed in names.fixed.items():
        value = values.get(key, allowed[0])
        if key == PER_LAYER and isinstance(value, list) and len(value) != layers:
            raise UserError(
                f"{where}: {key} has {len(value)} entries and num_hidden_layers is {layers}; fetch "
                "the model's own config.json"
            )
        for entry in value if isinstance(value, list) and key == PER_LAYER else [value]:
            if not any(entry == one and type(entry) is type(one) for one in allowed):
                raise UserError(
                    f"{where}: {key} is {entry!r:.80}; only {allowed[0]!r} is supported"
                )


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling]:
    """Returns theta and scaling: `rope_scaling`, or `rope_parameters`, with `rope_theta`."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UserError(
            f"{where}: RoPE parameters cannot be read ({rope!r:.80}); one object for all layers is "
            "supported"
        )
    beside = {
        "original_max_position_embeddings": values["max_position_embeddings"],
        "rope_theta": values.get("rope_theta", 10000.0),
        "partial_rotary_factor": values.get("partial_rotary_factor", 1.0),
    }
    get = JsonValues({**beside, **rope}, where)  # values in the object come first
    if get.number("partial_rotary_factor") != 1.0:
        raise UserError(f"{where}: rotates a part of each head, which is not supported")
    theta = get.number("rope_theta")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, RopeScaling()
    if kind != "llama3":
        raise UserError(f"{where}: rope_type is {kind!r:.80}; 'default' and 'llama3' are supported")
    return theta, RopeScaling(
        factor=get.number("factor"),
        low_freq_factor=get.number("low_freq_factor"),
        high_freq_factor=get.number("high_freq_factor"),
        original_length=get.integer("original_max_position_embeddings"),
    )
