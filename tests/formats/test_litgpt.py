"""Checkpoints of lit-gpt and of the paper's code against the same weights in transformers."""

import json
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prts_jax import tree
from prts_jax.errors import UserError
from prts_jax.evaluate.logits_check import load_params
from prts_jax.formats import huggingface, litgpt
from tests.formats.foreign_models import litgpt_config, litgpt_state, save_transformers, shape

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def save_litgpt(folder: Path, state: Any, model: Any) -> Path:
    folder.mkdir()
    torch.save(state, folder / litgpt.WEIGHTS)
    (folder / litgpt.CONFIG).write_text(json.dumps(litgpt_config(model)))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", ["mha", "gqa", "mqa"])
def test_leaves_are_those_of_transformers(tmp_path: Path, heads: str, dtype: str) -> None:
    model = shape(heads)
    made = save_transformers(tmp_path / "hf", model, dtype)
    state = litgpt_state(made, model, swiglu=heads == "gqa")
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
    made = save_transformers(tmp_path / "hf", model)
    file = tmp_path / "step-00005000.pth"
    state = litgpt_state(made, model, swiglu=True)
    torch.save({"model": {f"_orig_mod.{name}": t for name, t in state.items()}, "step": 5}, file)
    monkeypatch.setattr(litgpt, "preset", lambda name: shape("mha"))
    assert litgpt.open_model(str(file), "2L16H").model == model
    with pytest.raises(UserError, match="says nothing of its shape; give --preset"):
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
        ({"n_layer": None}, "cannot be read"),
        ({"rope_condense_ratio": 2}, "stretches RoPE"),
    ],
)
def test_another_kind_of_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        litgpt.read_config(litgpt_config(shape()) | change, "lit_config.json")


def test_weights_of_another_config_are_refused(tmp_path: Path) -> None:
    model = shape("mha")
    made = save_transformers(tmp_path / "hf", model)
    folder = save_litgpt(tmp_path / "lit", litgpt_state(made, model, swiglu=True), model)
    config = folder / litgpt.CONFIG
    config.write_text(json.dumps(litgpt_config(model) | {"n_layer": 1}))
    with pytest.raises(UserError, match="transformer.h.1.* would be lost"):
        litgpt.open_model(str(folder))
    config.write_text(json.dumps(litgpt_config(model) | {"n_query_groups": 2}))
    with pytest.raises(UserError, match=r"attn.attn.weight: has shape \[96, 16\].*\[64, 16\]"):
        litgpt.open_model(str(folder))
