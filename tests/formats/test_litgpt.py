"""Checkpoints of lit-gpt and of the paper's code against the same weights in transformers."""

import dataclasses
import json
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from prts_jax import tree
from prts_jax.errors import UserError
from prts_jax.evaluate.logits_check import load_params
from prts_jax.formats import huggingface, inspection, litgpt, litgpt_config
from tests.formats.foreign_models import litgpt_config as config_of
from tests.formats.foreign_models import litgpt_state, save_transformers, shape

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def save_litgpt(folder: Path, state: Any, model: Any) -> Path:
    folder.mkdir()
    torch.save(state, folder / litgpt.WEIGHTS)
    (folder / litgpt_config.JSON).write_text(json.dumps(config_of(model)))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", ["mha", "gqa", "mqa"])
def test_leaves_are_those_of_transformers(tmp_path: Path, heads: str, dtype: str) -> None:
    model = shape(heads)
    built = save_transformers(tmp_path / "hf", model, dtype)
    state = litgpt_state(built, model, swiglu=heads == "gqa")
    folder = save_litgpt(tmp_path / "lit", state, model)
    opened = litgpt.open_model(str(folder))
    assert opened.model == model
    assert opened.dtype == dtype
    ours = tree.flatten(load_params(opened))
    theirs = tree.flatten(load_params(huggingface.open_model(str(tmp_path / "hf"))))
    for path, values in theirs.items():
        np.testing.assert_array_equal(ours[path], values, err_msg=path)


def test_a_bare_file_takes_its_shape_from_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shape("mha")
    built = save_transformers(tmp_path / "hf", model)
    file = tmp_path / "step-00005000.pth"
    state = litgpt_state(built, model, swiglu=True)
    torch.save({"model": {f"_orig_mod.{name}": t for name, t in state.items()}, "step": 5}, file)
    monkeypatch.setattr(litgpt_config, "preset", lambda name: shape("mha"))
    assert litgpt.open_model(str(file), "2L16H").model == model
    with pytest.raises(UserError, match="beside its weights; give its shape, such as"):
        litgpt.open_model(str(file))


def test_published_names_are_presets(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    torch.save({"transformer.wte.weight": torch.zeros(4, 2048)}, file)
    for layers in (6, 24):
        with pytest.raises(UserError, match=r"ln_f.weight: is missing; its config says \[2048\]"):
            litgpt.open_model(str(file), f"{layers}L2048H")


def test_a_file_that_needs_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lightning.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"out_dir": pathlib.Path("x")}}, file)
    with pytest.raises(UserError, match="holds more than tensors") as refusal:
        litgpt.open_model(str(file), "6L2048H")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04damaged"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        litgpt.open_model(str(file), "6L2048H")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": True}, "bias is True"),
        ({"rotary_percentage": 0.25}, "rotary_percentage is 0.25"),
        ({"_norm_class": "LayerNorm"}, "_norm_class is 'LayerNorm'"),
        ({"n_layer": None}, "n_layer is None; it must be an integer"),
        ({"n_head": "4"}, "n_head is '4'; it must be an integer"),
        ({"n_embd": 16.0}, "n_embd is 16.0; it must be an integer"),
        ({"n_layer": True}, "n_layer is True; it must be an integer"),
        ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'; it must be a number"),
        ({"norm_eps": float("nan")}, "norm_eps is nan; it must be a finite number"),
        ({"rope_base": 10**400}, "rope_base is beyond all reason"),
        ({"bias": 0}, "bias is 0; only False"),
        ({"rope_condense_ratio": 2}, "rope_condense_ratio is 2"),
        ({"rope_adjustments": {"factor": 2.0}}, "stretch RoPE"),
        ({"rope_adjustments": 2}, "stretch RoPE"),
        ({"norm_qk": True}, "norm_qk is True"),
        ({"sliding_window_size": 512}, "sliding_window_size is 512"),
        ({"head_size": 0}, "head_dim"),
    ],
)
def test_another_kind_of_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        litgpt_config.read_config(config_of(shape()) | change, "lit_config.json")


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    model = shape("mha")
    built = save_transformers(tmp_path / "hf", model)
    folder = save_litgpt(tmp_path / "lit", litgpt_state(built, model, swiglu=True), model)
    config = folder / litgpt_config.JSON
    config.write_text(json.dumps(config_of(model) | {"n_layer": 1}))
    with pytest.raises(UserError, match="transformer.h.1.* would be lost"):
        litgpt.open_model(str(folder))
    config.write_text(json.dumps(config_of(model) | {"n_query_groups": 2}))
    with pytest.raises(UserError, match=r"attn.attn.weight: has shape \[96, 16\].*\[64, 16\]"):
        litgpt.open_model(str(folder))


def newer(state: Any, original: Any) -> Any:
    """Renames and reorders the fused tensors as newer versions of litgpt store them."""
    weights = original.state_dict()
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("attn.attn.weight"):
            layer = name.split(".")[2]
            theirs = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
            name = name.replace("attn.attn", "attn.qkv")
            tensor = torch.cat([weights[one] for one in theirs])
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("heads", ["mha", "gqa", "mqa"])
def test_the_newer_form_is_the_same_model(tmp_path: Path, heads: str) -> None:
    model = shape(heads)
    built = save_transformers(tmp_path / "hf", model)
    state = newer(litgpt_state(built, model, swiglu=False), built)
    folder = save_litgpt(tmp_path / "lit", state, model)
    (folder / litgpt_config.JSON).unlink()
    file = folder / litgpt_config.YAML
    names = {"_norm_class": "norm_class_name", "_mlp_class": "mlp_class_name"}
    values = {names.get(key, key): value for key, value in config_of(model).items()}
    file.write_text(yaml.safe_dump(values | {"hf_config": {}, "norm_class_name": "RMSNorm"}))
    ours = tree.flatten(load_params(litgpt.open_model(str(folder))))
    theirs = tree.flatten(load_params(huggingface.open_model(str(tmp_path / "hf"))))
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf, err_msg=path)


def test_llama_3_scales_rope_in_the_newer_form_too() -> None:
    adjustments = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": 8192,
    }
    values = config_of(shape()) | {"rope_adjustments": adjustments}
    scaling = litgpt_config.read_config(values, "x")[0].rope_scaling
    assert dataclasses.astuple(scaling) == (8.0, 1.0, 4.0, 8192)


def test_two_statements_of_a_shape_must_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shape("mha")
    built = save_transformers(tmp_path / "hf", model)
    folder = save_litgpt(tmp_path / "lit", litgpt_state(built, model, swiglu=True), model)
    newer_file = folder / litgpt_config.YAML
    newer_file.write_text(yaml.safe_dump(config_of(model)))
    assert litgpt.open_model(str(folder)).model == model
    newer_file.write_text(yaml.safe_dump(config_of(model) | {"rope_base": 500000}))
    with pytest.raises(UserError, match=r"yaml: rope_theta is 500000.0, and 10000.0 in .*json"):
        litgpt.open_model(str(folder))
    newer_file.unlink()
    preset = dataclasses.replace(model, norm_eps=1e-6)
    monkeypatch.setattr(litgpt_config, "preset", lambda name: preset)
    with pytest.raises(UserError, match=r"--preset=one: norm_eps is 1e-06, and 1e-05 in"):
        litgpt.open_model(str(folder), "one")


@pytest.mark.parametrize("name", [litgpt_config.JSON, litgpt_config.YAML])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000, b"a: [", None])
def test_a_damaged_config_is_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    file = tmp_path / name
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: is damaged") as refusal:
        litgpt.open_model(str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["params.json", "consolidated.00.pth"])
def test_the_format_of_meta_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    for read in (litgpt.open_model, huggingface.open_model, inspection.open_any):
        with pytest.raises(UserError, match=f"holds {name}, so it is a model in Meta's own format"):
            read(str(tmp_path))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("tok_embeddings.weight", "in Meta's own format; fetch its folder for transformers"),
        ("model.embed_tokens.weight", "holds the tensors of transformers; save the model with"),
    ],
)
def test_a_file_of_another_program_is_named(tmp_path: Path, tensor: str, message: str) -> None:
    file = tmp_path / "x.pth"
    torch.save({tensor: torch.zeros(4, 2048)}, file)
    with pytest.raises(UserError, match=message):
        litgpt.open_model(str(file), "6L2048H")
