"""Conversion there and back: bit for bit, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.checkpoint import layout
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.logits_check import compare, load_params
from prts_jax.formats import convert, export, huggingface, import_transforms
from prts_jax.formats.model_source import ModelSource
from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL, edit_lineage, write_source
from tests.formats.foreign_models import logits_of, save_transformers, shape
from tests.growth.on_disk.growing import stream

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("safetensors.numpy")

TOKENS = np.random.default_rng(1).integers(0, 40, (1, 9))


def imported(tmp_path: Path, model: ModelConfig, dtype: str = "float32", **extra: Any) -> Any:
    """Saves a model of transformers in `hf` and imports it as `orbax`; returns theirs."""
    theirs = save_transformers(tmp_path / "hf", model, dtype, **extra)
    convert.write_checkpoint(open_hf(tmp_path / "hf"), str(tmp_path / "orbax"))
    return theirs


def load(folder: Path) -> Any:
    """Loads a folder as a user of transformers does, with the attention that the others have."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def open_hf(folder: Path) -> ModelSource:
    return convert.open_source("hf", str(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "tied"), [("mha", False), ("gqa", True), ("mqa", False)])
def test_there_and_back_is_bit_exact(tmp_path: Path, heads: str, tied: bool, dtype: str) -> None:
    imported(tmp_path, shape(heads, tied), dtype)
    source = convert.open_checkpoint(str(tmp_path / "orbax"))
    report = export.write_huggingface(source, str(tmp_path / "back"))
    assert report.dtype == dtype  # nothing has trained it since
    before = library.load_file(tmp_path / "hf" / "model.safetensors")
    after = library.load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.dtype == after[name].dtype
        assert values.tobytes() == after[name].tobytes(), name
    theirs, ours = (logits_of(load(tmp_path / name), TOKENS) for name in ("hf", "back"))
    np.testing.assert_array_equal(ours, theirs)


def test_gates_of_new_layers_are_folded_into_what_is_exported(tmp_path: Path) -> None:
    """Right after growth they are shut: transformers computes what the source computed."""
    write_source(tmp_path / "ours")
    growth_map = make_map(MODEL, None, "random", factor=2)
    stream(str(tmp_path / "ours"), str(tmp_path / "grown"), growth_map)
    for name in ("ours", "grown"):
        checkpoint = convert.open_checkpoint(str(tmp_path / name))
        export.write_huggingface(checkpoint, str(tmp_path / f"{name}_hf"))
        exported = import_transforms.without_gates(checkpoint)
        assert not convert.first_difference(exported, open_hf(tmp_path / f"{name}_hf"), "float32")
    before, after = (logits_of(load(tmp_path / f"{name}_hf"), TOKENS) for name in ("ours", "grown"))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_half_open_gates_of_width_are_not_exported(tmp_path: Path) -> None:
    write_source(tmp_path / "ours")
    growth_map = make_map(MODEL, None, "random_width", widths="mlp=32")
    stream(str(tmp_path / "ours"), str(tmp_path / "grown"), growth_map)
    checkpoint = convert.open_checkpoint(str(tmp_path / "grown"))
    with pytest.raises(UserError, match="grown: growth: gates of mlp are open by 0% only") as no:
        export.write_huggingface(checkpoint, str(tmp_path / "hf"))
    assert "\n" not in str(no.value)
    assert not (tmp_path / "hf").exists()


def test_an_import_begins_a_lineage(tmp_path: Path) -> None:
    imported(tmp_path, shape(), "bfloat16")
    lineage = layout.read_lineage(layout.resolve(str(tmp_path / "orbax")))
    assert (lineage.step, lineage.tokens, lineage.flops, lineage.store) == (0, 0, 0, "")
    assert lineage.model == shape()
    assert lineage.imported["dtype"] == "bfloat16"
    assert lineage.imported["length"] == 64


def test_a_trained_checkpoint_is_exported_in_float32_with_its_past(tmp_path: Path) -> None:
    params = write_source(tmp_path / "ours")
    export.write_huggingface(convert.open_checkpoint(str(tmp_path / "ours")), str(tmp_path / "hf"))
    back = open_hf(tmp_path / "hf")
    assert back.dtype == "float32"
    assert back.model == MODEL
    for path, values in tree.flatten(load_params(back)).items():
        np.testing.assert_array_equal(values, tree.flatten(params)[path])
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "7 optimizer steps on 4,096 tokens" in card
    assert "`store-fingerprint`" in card


def test_logits_are_compared_across_programs(tmp_path: Path) -> None:
    imported(tmp_path, shape())
    actual = compare(open_hf(tmp_path / "hf"), convert.open_checkpoint(str(tmp_path / "orbax")))
    assert actual.largest_difference < 2e-5
    assert actual.largest_logit > 1
    assert actual.same_arg_max == 1


def test_small_files_are_carried_along(tmp_path: Path) -> None:
    save_transformers(tmp_path / "hf", shape())
    (tmp_path / "hf" / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "hf" / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    convert.write_checkpoint(open_hf(tmp_path / "hf"), str(tmp_path / "orbax"))
    source = convert.open_checkpoint(str(tmp_path / "orbax"))
    report = export.write_huggingface(source, str(tmp_path / "back"))
    assert set(report.tokenizer) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    }
    assert (tmp_path / "back" / "tokenizer.json").read_text() == '{"model": {}}'
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["eos_token_id"] == 2  # as in the source; generation_config.json comes first
    assert config["max_position_embeddings"] == 64


@pytest.mark.parametrize("tied", [False, True])
def test_a_padded_vocabulary_adds_zeros_and_changes_no_other_logit(
    tmp_path: Path, tied: bool
) -> None:
    theirs = save_transformers(tmp_path / "hf", shape(tied=tied))
    padded = import_transforms.with_vocab(open_hf(tmp_path / "hf"), 48)
    export.write_huggingface(padded, str(tmp_path / "padded"))
    loaded = load(tmp_path / "padded")
    logits = logits_of(loaded, TOKENS)
    np.testing.assert_allclose(logits[..., :40], logits_of(theirs, TOKENS), atol=1e-6)
    assert not logits[..., 40:].any()
    cut = import_transforms.with_vocab(open_hf(tmp_path / "padded"), 40)
    assert convert.first_difference(open_hf(tmp_path / "hf"), cut, "float32") == ""


def test_a_difference_is_found(tmp_path: Path) -> None:
    imported(tmp_path, shape())
    source = open_hf(tmp_path / "hf")
    file = next((tmp_path / "hf").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    target = convert.open_checkpoint(str(tmp_path / "orbax"))
    assert convert.first_difference(source, target, "float32") == "final_norm"


def test_float16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    save_transformers(tmp_path / "hf", shape())
    source = open_hf(tmp_path / "hf")
    large = ModelSource(
        **{**vars(source), "read": lambda path, layer: source.read(path, layer) * np.float32(1e6)}
    )
    with pytest.raises(UserError, match="beyond the range of float16"):
        export.write_huggingface(large, str(tmp_path / "out"), dtype="float16")
    assert not (tmp_path / "out").exists()
    export.write_huggingface(large, str(tmp_path / "out"), dtype="bfloat16")
    stored = huggingface.open_model(str(tmp_path / "out")).read("final_norm", None)
    assert stored.dtype == ml_dtypes.bfloat16


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    save_transformers(tmp_path / "hf", shape())
    source = open_hf(tmp_path / "hf")
    file = next((tmp_path / "hf").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-400])  # after it was opened
    for write in (convert.write_checkpoint, export.write_huggingface):
        with pytest.raises(UserError, match="is cut short"):
            write(source, str(tmp_path / "out"))
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_damage_in_a_checkpoint_is_found(tmp_path: Path) -> None:
    imported(tmp_path, shape())
    lineage = tmp_path / "orbax" / "lineage" / "lineage.json"
    digests = json.loads(lineage.read_text())["digests"]
    digests["layers/mlp/up"][1] = "0" * 16
    edit_lineage(lineage, digests=digests)
    source = convert.open_checkpoint(str(tmp_path / "orbax"))
    with pytest.raises(UserError, match=r"layers/mlp/up, layer 1: is not what was saved"):
        export.write_huggingface(source, str(tmp_path / "out"))
