"""Shapes of lit-gpt models: lit_config.json, and model_config.yaml of its newer versions.

Source: `Config` of lit-gpt and litgpt; `rope_adjustments` are the RoPE scaling of Llama 3.1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prts_jax.config import ModelConfig, RopeScaling, check_model
from prts_jax.errors import UserError, first_line
from prts_jax.formats.json_values import JsonValues
from prts_jax.formats.model_source import refuse_meta
from prts_jax.model.architecture import architecture
from prts_jax.model.presets import preset
from prts_jax.special_ids import read_json

JSON = "lit_config.json"
YAML = "model_config.yaml"
PRESET_LENGTH = 2048

_ONLY: dict[str, tuple[Any, ...]] = {
    "bias": (False,),
    "attn_bias": (False, None),
    "lm_head_bias": (False,),
    "parallel_residual": (False,),
    "shared_attention_norm": (False,),
    "rotary_percentage": (1.0,),
    "rope_condense_ratio": (1,),
    "rope_interleave": (False,),
    "rope_local_base_freq": (None,),
    "_mlp_class": ("LLaMAMLP",),
    "mlp_class_name": ("LLaMAMLP",),
    "_norm_class": ("RMSNorm", "FusedRMSNorm"),
    "norm_class_name": ("RMSNorm", "FusedRMSNorm"),
    "norm_qk": (False,),
    "norm_1": (True,),
    "norm_2": (True,),
    "post_attention_norm": (False,),
    "post_mlp_norm": (False,),
    "n_expert": (0,),
    "scale_embeddings": (False,),
    "sliding_window_size": (None,),
    "latent_attention": (None,),
    "attention_scores_scalar": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
"""Key → values that our computation allows."""

_MAY_BE_NULL = ("padded_vocab_size", "head_size", "n_query_groups")
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")


def shape_of(root: Any, preset_name: str) -> tuple[ModelConfig, int]:
    """Returns the shape of a folder's or a .pth file's model, and its longest sequence in tokens.

    Raises:
      UserError: nothing names the shape, two files contradict each other, or a file is damaged.
    """
    if not root.exists():
        raise UserError(f"{root}: does not exist; name lit-gpt's folder, or a .pth file")
    folder = root if root.is_dir() else root.parent
    shapes = [
        (str(file), *read_config(read(file), str(file)))
        for file, read in ((folder / JSON, read_json), (folder / YAML, _read_yaml))
        if file.exists()
    ]
    if preset_name:
        model = preset(preset_name)
        if not architecture(model).lit_gpt:
            raise UserError(f"--preset={preset_name}: only Llamas are read from lit-gpt")
        shapes.append((f"--preset={preset_name}", model, PRESET_LENGTH))
    if not shapes:
        refuse_meta(str(folder))
        raise UserError(
            f"{root}: has no {JSON} or {YAML} beside its weights; give its shape, such as "
            "--preset=6L2048H"
        )
    for where, model, _ in shapes[1:]:
        _refuse_difference(shapes[0], where, model)
    return shapes[0][1:]


def read_config(values: Mapping[str, Any], where: str) -> tuple[ModelConfig, int]:
    """Reads the fields of lit-gpt's `Config`, with old and new names.

    Returns the model's config and its longest sequence, in tokens.

    Raises:
      UserError: a key is missing, has another type or asks for an unsupported feature.
    """
    for key, allowed in _ONLY.items():
        value = values.get(key, allowed[0])
        booleans = isinstance(value, bool), isinstance(allowed[0], bool)
        if value not in allowed or (value is not None and booleans[0] != booleans[1]):
            raise UserError(f"{where}: {key} is {value!r:.80}; only {allowed[0]!r} is supported")
    for key in ("n_layer", "n_head", "n_embd", "vocab_size", "intermediate_size"):
        if key not in values:
            raise UserError(f"{where}: lacks {key}; is it lit-gpt's config?")
    get = JsonValues(values, where, _MAY_BE_NULL)
    embed, heads = get.integer("n_embd"), get.integer("n_head")
    model = ModelConfig(
        vocab=get.integer("padded_vocab_size", get.integer("vocab_size")),
        layers=get.integer("n_layer"),
        embed=embed,
        heads=heads,
        kv_heads=get.integer("n_query_groups", heads),
        head_dim=get.integer("head_size", embed // max(heads, 1)),
        mlp=get.integer("intermediate_size"),
        norm_eps=get.number("norm_eps", 1e-5),
        rope_theta=get.number("rope_base", 10000),
        rope_scaling=_scaling(values, where),
    )
    check_model(model, where)
    return model, get.integer("block_size", PRESET_LENGTH)


def _scaling(values: Mapping[str, Any], where: str) -> RopeScaling:
    adjustments = values.get("rope_adjustments")
    if adjustments is None:
        return RopeScaling()
    if not isinstance(adjustments, dict) or set(adjustments) != set(_SCALING):
        raise UserError(f"{where}: rope_adjustments stretch RoPE in a way that is not supported")
    get = JsonValues(adjustments, f"{where}: rope_adjustments")
    return RopeScaling(
        factor=get.number("factor"),
        low_freq_factor=get.number("low_freq_factor"),
        high_freq_factor=get.number("high_freq_factor"),
        original_length=get.integer("original_max_seq_len"),
    )


def _read_yaml(file: Any) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        return dict(yaml.safe_load(file.read_text()))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{file}: is damaged ({first_line(error)}); copy it again") from error


def _refuse_difference(first: tuple[str, ModelConfig, int], where: str, other: ModelConfig) -> None:
    """Raises UserError if two statements of a shape differ; the embedding has the rows in fact."""
    stated, model, _ = first
    for field in dataclasses.fields(model):
        ours, theirs = getattr(model, field.name), getattr(other, field.name)
        if ours != theirs and field.name != "vocab":
            raise UserError(
                f"{where}: {field.name} is {theirs}, and {ours} in {stated}; keep the one that is "
                "this model's"
            )
