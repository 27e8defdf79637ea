"""Tiny models as other projects write them: transformers and lit-gpt."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from prts_jax import tree
from prts_jax.config import ModelConfig
from prts_jax.formats import safetensors_files
from prts_jax.formats.config_json import config_json, write_json
from prts_jax.formats.huggingface import tensor_name
from prts_jax.formats.model_source import is_linear, leaf_layers
from prts_jax.model.architecture import declare

HEADS = {"mha": (4, 4), "gqa": (4, 2), "mqa": (4, 1)}


def shape(heads: str = "gqa", tied: bool = False, architecture: str = "llama") -> ModelConfig:
    queries, keys = HEADS[heads]
    return ModelConfig(
        architecture=architecture,
        vocab=40,
        layers=2,
        embed=16,
        heads=queries,
        kv_heads=keys,
        head_dim=8,
        mlp=24,
        tied=tied,
    )


def _drawn(model: ModelConfig, **extra: Any) -> Any:
    """A model of transformers of this shape, as it draws it; `extra` goes into its config."""
    import transformers

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": model.rope_theta}
    if model.rope_scaling.factor != 1.0:
        rope |= {
            "rope_type": "llama3",
            "factor": model.rope_scaling.factor,
            "low_freq_factor": model.rope_scaling.low_freq_factor,
            "high_freq_factor": model.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": model.rope_scaling.original_length,
        }
    options: dict[str, Any] = {
        "vocab_size": model.vocab,
        "hidden_size": model.embed,
        "intermediate_size": model.mlp,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": model.tied,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }
    if model.architecture == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**(options | extra)))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(options | extra)))


def transformers_model(model: ModelConfig, dtype: str = "float32", **extra: Any) -> Any:
    """A model of transformers with weights as large as training makes them, norms among them."""
    import torch

    torch.manual_seed(0)
    built = _drawn(model, **extra)
    with torch.no_grad():
        for parameter in built.parameters():
            # Values that bfloat16 holds, so that every dtype here says the same.
            values = torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1)
            parameter.copy_(values.to(torch.bfloat16).float())
    return built.to(getattr(torch, dtype)).eval()


def transformers_of(params: Any, model: ModelConfig, dtype: str = "float32") -> Any:
    """A model of transformers with our parameters, its own code under our weights."""
    import torch

    built = _drawn(model).to(getattr(torch, dtype)).eval()
    weights = {name: torch.tensor(value) for name, value in under_their_names(params).items()}
    missing, unexpected = built.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.tied else set())
    built.tie_weights()
    return built


def under_their_names(params: Any) -> dict[str, np.ndarray]:
    """Our parameters (or gradients, or moments) under transformers' names, kernels [out, in]."""
    leaves = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
    width = leaves["final_norm"].size
    named = {
        "model.embed_tokens.weight": leaves.pop("token_embedding"),
        "model.norm.weight": leaves.pop("final_norm"),
    }
    if "head" in leaves:
        named["lm_head.weight"] = leaves.pop("head").T
    theirs = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    theirs |= {f"attention/{name}": f"self_attn.{name}_proj" for name in "qkvo"}
    theirs |= {f"attention/{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")}
    theirs |= {f"mlp/{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for path, stacked in leaves.items():
        ours = path.removeprefix("layers/")
        for layer, values in enumerate(stacked):
            if ours == "attention/o":
                values = values.reshape(-1, width).T
            elif values.ndim > 1:
                values = values.reshape(values.shape[0], -1).T
            named[f"model.layers.{layer}.{theirs[ours]}.weight"] = values
    return {name: np.ascontiguousarray(values) for name, values in named.items()}


def write_plain(
    folder: Path, model: ModelConfig, dtype: str = "float32", shard_bytes: int = 10**9
) -> int:
    """Writes a model of transformers' form without its libraries; returns the bytes of all."""
    folder.mkdir(parents=True)
    held = safetensors_files.dtype_named(dtype)

    def tensor(leaf: str, layer: int | None) -> safetensors_files.NewTensor:
        declaration = declare(model)[leaf]
        shape = declaration.layer_shape
        if is_linear(declaration):
            shape = (math.prod(shape) // declaration.fan_in, declaration.fan_in)
        drawn = np.random.default_rng(layer or 0).standard_normal
        name = tensor_name(model, leaf, layer)
        make = lambda: drawn(shape, np.float32).astype(held)  # noqa: E731
        return safetensors_files.NewTensor(name, shape, held, make)

    tensors = [tensor(leaf, layer) for leaf, layer in leaf_layers(model)]
    safetensors_files.write_folder(str(folder), tensors, shard_bytes, lambda count: None)
    write_json(str(folder), "config.json", config_json(model, dtype, 64))
    return sum(one.nbytes for one in tensors)


def save_transformers(
    folder: Path, model: ModelConfig, dtype: str = "float32", **extra: Any
) -> Any:
    built = transformers_model(model, dtype, **extra)
    built.save_pretrained(folder)
    return built


def load_transformers(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", attn_implementation="eager"
    ).eval()


def logits_of(model_of_transformers: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(model_of_transformers.float()(torch.tensor(tokens)).logits.numpy())


def litgpt_state(model_of_transformers: Any, model: ModelConfig, swiglu: bool) -> dict[str, Any]:
    """The same weights under lit-gpt's names, query groups fused row by row."""
    import torch

    weights = model_of_transformers.state_dict()
    state = {
        "transformer.wte.weight": weights["model.embed_tokens.weight"],
        "transformer.ln_f.weight": weights["model.norm.weight"],
        "lm_head.weight": weights["lm_head.weight"],
    }
    mlp = ("swiglu.w1", "swiglu.w2", "swiglu.w3") if swiglu else ("fc_1", "fc_2", "proj")
    size, group = model.head_dim, model.heads // model.kv_heads
    for layer in range(model.layers):
        theirs, ours = f"model.layers.{layer}.", f"transformer.h.{layer}."
        q, k, v = (weights[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv")
        rows = []
        for key in range(model.kv_heads):
            for query in range(key * group, (key + 1) * group):
                rows.append(q[query * size : (query + 1) * size])
            rows += [k[key * size : (key + 1) * size], v[key * size : (key + 1) * size]]
        state[f"{ours}attn.attn.weight"] = torch.cat(rows)
        state[f"{ours}attn.proj.weight"] = weights[f"{theirs}self_attn.o_proj.weight"]
        state[f"{ours}norm_1.weight"] = weights[f"{theirs}input_layernorm.weight"]
        state[f"{ours}norm_2.weight"] = weights[f"{theirs}post_attention_layernorm.weight"]
        for name, hf in zip(mlp, ("gate", "up", "down"), strict=True):
            state[f"{ours}mlp.{name}.weight"] = weights[f"{theirs}mlp.{hf}_proj.weight"]
    return {name: tensor.clone() for name, tensor in state.items()}


def litgpt_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "block_size": 64,
        "vocab_size": model.vocab - 3,
        "padded_vocab_size": model.vocab,
        "n_layer": model.layers,
        "n_head": model.heads,
        "n_embd": model.embed,
        "head_size": model.head_dim,
        "n_query_groups": model.kv_heads,
        "intermediate_size": model.mlp,
        "norm_eps": model.norm_eps,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "_norm_class": "FusedRMSNorm",
        "_mlp_class": "LLaMAMLP",
    }
