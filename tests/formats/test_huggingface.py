"""Models of transformers, read and written by us; config.json in its spellings."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.config import ComputeConfig, RopeScaling
from prts_jax.errors import UserError
from prts_jax.evaluate.logits_check import load_params
from prts_jax.formats import config_json, convert, export, huggingface
from prts_jax.formats.model_source import ModelSource, without_wrappers
from prts_jax.model.architecture import logits
from tests.formats.foreign_models import load_transformers, logits_of, save_transformers, shape

pytest.importorskip("torch")
pytest.importorskip("transformers")

TOKENS = np.random.default_rng(1).integers(0, 40, (2, 12))
FLOAT32 = ComputeConfig(dtype="float32", attention="xla")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {
    "model_type": "llama",
    "vocab_size": 40,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


QWEN3 = PLAIN | {"model_type": "qwen3"}


def our_logits(opened: ModelSource) -> np.ndarray:
    tokens = jnp.asarray(TOKENS, jnp.int32)
    compute = jax.jit(logits, static_argnums=(2, 3))
    return np.asarray(compute(load_params(opened), tokens, opened.model, FLOAT32))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", ["mha", "gqa", "mqa"])
def test_logits_are_those_of_transformers(tmp_path: Path, heads: str, tied: bool) -> None:
    extra: dict[str, Any] = {"rope_parameters": LLAMA3} if heads == "gqa" else {}
    theirs = save_transformers(tmp_path, shape(heads, tied), **extra)
    opened = huggingface.open_model(str(tmp_path))
    assert (opened.model.rope_scaling != RopeScaling()) == (heads == "gqa")
    assert opened.length == 64
    np.testing.assert_allclose(our_logits(opened), logits_of(theirs, TOKENS), atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", ["gqa", "mqa"])
def test_qwen3_is_transformers_qwen3_imported_and_exported(
    tmp_path: Path, heads: str, tied: bool
) -> None:
    """Its head_dim is not embed / heads."""
    model = dataclasses.replace(shape(heads, tied, "qwen3"), norm_eps=1e-6, rope_theta=1e6)
    theirs = save_transformers(tmp_path / "hf", model)
    opened = huggingface.open_model(str(tmp_path / "hf"))
    assert opened.model == model
    expected = logits_of(theirs, TOKENS)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(our_logits(opened) / scale, expected / scale, atol=1e-5)

    convert.write_checkpoint(opened, str(tmp_path / "ours"))
    checkpoint = convert.open_checkpoint(str(tmp_path / "ours"))
    export.write_huggingface(checkpoint, str(tmp_path / "back"))
    assert huggingface.open_model(str(tmp_path / "back")).model == model
    back = load_transformers(tmp_path / "back")
    assert type(back).__name__ == "Qwen3ForCausalLM"
    np.testing.assert_array_equal(logits_of(back, TOKENS), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_moe"}, "'qwen3_moe'; only 'llama' and 'qwen3' can be converted"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True; only False is supported"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is 'sliding_attention'; only 'full_attention' is supported",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
    ],
)
def test_a_qwen3_that_computes_otherwise_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        config_json.read_config(QWEN3 | change, "config.json")
    assert "\n" not in str(refusal.value)


def test_absent_keys_take_the_defaults_of_their_architecture() -> None:
    assert config_json.read_config(QWEN3 | {"num_attention_heads": 64}, "c").kv_heads == 32
    assert config_json.read_config(QWEN3 | {"num_key_value_heads": 2}, "c").head_dim == 128


def test_both_spellings_of_rope_are_read() -> None:
    new = config_json.read_config(PLAIN | {"rope_parameters": LLAMA3}, "config.json")
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    old = config_json.read_config(PLAIN | {"rope_theta": 500.0, "rope_scaling": scaling}, "c")
    oldest = dict(scaling, type=scaling["rope_type"])
    oldest.pop("rope_type")
    assert new == old
    assert new == config_json.read_config(
        PLAIN | {"rope_theta": 500.0, "rope_scaling": oldest}, "c"
    )
    assert new.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 32)
    assert new.kv_heads == 4
    assert new.head_dim == 4


def test_a_config_written_is_the_config_read() -> None:
    model = dataclasses.replace(shape("gqa"), rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32))
    values = config_json.config_json(model, "bfloat16", 64)
    assert config_json.read_config(values, "config.json") == model
    without_new = {key: value for key, value in values.items() if key != "rope_parameters"}
    assert config_json.read_config(without_new, "config.json") == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is 'linear'"),
        ({"rope_scaling": {"type": "llama3"}}, "factor is None; it must be a number"),
        ({"rope_scaling": 3}, "RoPE parameters cannot be read"),
        ({"num_key_value_heads": 3}, "do not divide among kv_heads=3"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'; it must be an integer"),
        ({"hidden_size": True}, "hidden_size is True; it must be an integer"),
        ({"head_dim": 0}, "head_dim: is 0; it must be at least 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a finite number"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is None; it must be true or false"),
        ({"quantization_config": {"quant_method": "fp8"}}, "the weights are quantized"),
        ({"partial_rotary_factor": 0.5}, "rotates a part of each head"),
        ({"attention_bias": 0}, "attention_bias is 0"),
    ],
)
def test_what_we_cannot_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        config_json.read_config(PLAIN | change, "config.json")
    assert "\n" not in str(refusal.value)


def test_a_missing_key_is_named() -> None:
    values = {key: value for key, value in PLAIN.items() if key != "hidden_size"}
    with pytest.raises(UserError, match="lacks hidden_size"):
        config_json.read_config(values, "config.json")


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    save_transformers(tmp_path, shape())
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"intermediate_size": 24', '"intermediate_size": 32'))
    with pytest.raises(UserError, match=r"down_proj.weight: has shape \[16, 24\].*\[16, 32\]"):
        huggingface.open_model(str(tmp_path))
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(UserError, match=r"layers.1.* would be lost"):
        huggingface.open_model(str(tmp_path))
    config.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(UserError, match=r"layers\.2\..*: is missing"):
        huggingface.open_model(str(tmp_path))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", ["both", "equal", "head", "embedding"])
def test_a_head_is_tied_where_transformers_ties_it(
    tmp_path: Path, kept: str, tied: bool, architecture: str
) -> None:
    library = pytest.importorskip("safetensors.torch")
    save_transformers(tmp_path, shape(architecture=architecture))
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights = library.load_file(file)
    if kept == "equal":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    if kept == "head":
        del weights["model.embed_tokens.weight"]
    if kept == "embedding":
        del weights["lm_head.weight"]
    library.save_file(weights, file, metadata={"format": "pt"})
    values = json.loads(config.read_text()) | {"tie_word_embeddings": tied}
    config.write_text(json.dumps(values))
    if not tied and kept in ("head", "embedding"):  # transformers draws what is missing
        with pytest.raises(UserError, match="is missing"):
            huggingface.open_model(str(tmp_path))
        return
    opened = huggingface.open_model(str(tmp_path))
    assert opened.model.tied == (tied and kept != "both")
    theirs = logits_of(load_transformers(tmp_path), TOKENS)
    np.testing.assert_allclose(our_logits(opened), theirs, atol=2e-5)


NO_THETA = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_scaling": NO_THETA, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}},
        {"rope_theta": 500.0, "rope_scaling": NO_THETA, "rope_parameters": None},
        {"rope_scaling": {}, "rope_parameters": LLAMA3, "rope_theta": 3.0},
        {
            "max_position_embeddings": 64,
            "rope_scaling": {
                key: value
                for key, value in LLAMA3.items()
                if key != "original_max_position_embeddings"
            },
        },
        {"rope_scaling": {"type": "llama3", "rope_type": "default", "rope_theta": 9.0}},
    ],
)
def test_rope_keys_that_contradict_are_read_as_transformers_reads_them(keys: Any) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaConfig(**copy.deepcopy(PLAIN | keys)).rope_parameters
    ours = config_json.read_config(PLAIN | keys, "config.json")
    assert ours.rope_theta == theirs["rope_theta"]
    assert (theirs["rope_type"] == "llama3") == (ours.rope_scaling != RopeScaling())
    if theirs["rope_type"] == "llama3":
        length = theirs["original_max_position_embeddings"]
        assert ours.rope_scaling == RopeScaling(8.0, 1.0, 4.0, length)


def test_each_tensor_keeps_its_dtype_through_a_checkpoint(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    save_transformers(tmp_path / "hf", shape())
    file = tmp_path / "hf" / "model.safetensors"
    weights = library.load_file(file)
    mixed = {
        name: torch.rand_like(value) if "norm" in name and "layers.1" in name else value.bfloat16()
        for name, value in weights.items()
    }
    library.save_file(mixed, file, metadata={"format": "pt"})
    convert.write_checkpoint(huggingface.open_model(str(tmp_path / "hf")), str(tmp_path / "ours"))
    source = convert.open_checkpoint(str(tmp_path / "ours"))
    report = export.write_huggingface(source, str(tmp_path / "back"))
    assert report.dtypes == {"bfloat16": len(mixed) - 2, "float32": 2}
    back = library.load_file(tmp_path / "back" / "model.safetensors")
    for name, value in mixed.items():
        assert torch.equal(back[name], value)
        assert back[name].dtype == value.dtype
    stated = [
        json.loads((tmp_path / x / "config.json").read_text())["dtype"] for x in ("hf", "back")
    ]
    assert stated[0] == stated[1]
    narrow = export.write_huggingface(source, str(tmp_path / "narrow"), dtype="bfloat16")
    assert narrow.dtypes == {"bfloat16": len(mixed)}
    opened = huggingface.open_model(str(tmp_path / "narrow"))
    assert convert.first_difference(source, opened, "") == "layers/attention_norm, layer 1"


def test_a_shape_that_transformers_refuses_is_not_exported(tmp_path: Path) -> None:
    model = dataclasses.replace(shape(), heads=6, kv_heads=2)
    assert "no multiple of its heads" in config_json.refusal(model)
    assert not config_json.refusal(dataclasses.replace(model, architecture="qwen3"))
    assert not config_json.refusal(shape())


def test_names_of_wrappers_are_stripped_in_any_order() -> None:
    names = {
        "module._orig_mod.a.weight": 1,
        "_orig_mod.module.layers.0._checkpoint_wrapped_module._fsdp_wrapped_module.b": 2,
    }
    assert without_wrappers(names, "x") == {"a.weight": 1, "layers.0.b": 2}
    with pytest.raises(UserError, match="is stored twice"):
        without_wrappers({"a": 1, "module.a": 2}, "x")
