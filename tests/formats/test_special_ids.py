"""Special ids from transformers through a checkpoint and back: transformers reads the same ids."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from prts_jax.checkpoint import layout
from prts_jax.errors import UserError
from prts_jax.formats import convert, export, import_transforms
from prts_jax.growth.operators import make_map
from prts_jax.special_ids import SpecialIds
from tests.checkpoint.tiny import write_source
from tests.formats.foreign_models import save_transformers, shape
from tests.growth.on_disk.growing import stream

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def ids_of(folder: Path) -> list[Any]:
    """Returns the ids of the config and of the generation config that transformers takes."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return [
        getattr(part, key) for part in (loaded.config, loaded.generation_config) for key in KEYS
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("special")
    for name in ("llama", "qwen3"):
        save_transformers(root / name, shape(architecture=name))
    return root


def with_ids(model: Path, folder: Path, config: Any, generation: Any) -> Path:
    """Writes a folder with other ids beside the weights of `model`."""
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    values = json.loads((model / "config.json").read_text())
    others = {key: value for key, value in values.items() if key not in KEYS}
    (folder / "config.json").write_text(json.dumps(others | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("name", "config", "generation", "expected"),
    [
        ("llama", {"bos_token_id": 5, "eos_token_id": 7}, None, SpecialIds(5, (7,))),
        ("llama", {"eos_token_id": [7, 8], "pad_token_id": 0}, None, SpecialIds(1, (7, 8), 0)),
        ("llama", {"eos_token_id": 7}, {"eos_token_id": [2, 7]}, SpecialIds(1, (2, 7))),
        ("llama", {"eos_token_id": 7}, {"bos_token_id": 3}, SpecialIds(3, (7,))),
        ("llama", {"bos_token_id": None, "eos_token_id": None}, None, SpecialIds()),
        ("llama", {"pad_token_id": -1, "eos_token_id": 3}, None, SpecialIds(1, (3,))),
        ("llama", {}, None, SpecialIds(1, (2,))),
        ("qwen3", {}, {"eos_token_id": 4, "temperature": 0.6}, SpecialIds(None, (4,))),
        ("qwen3", {"eos_token_id": 4}, None, SpecialIds(None, (4,))),
    ],
)
def test_ids_are_carried_from_transformers_to_transformers(
    models: Path, tmp_path: Path, name: str, config: Any, generation: Any, expected: SpecialIds
) -> None:
    folder = with_ids(models / name, tmp_path / "hf", config, generation)
    convert.write_checkpoint(convert.open_source("hf", str(folder)), str(tmp_path / "ours"))
    assert layout.read_lineage(str(tmp_path / "ours")).special_ids == expected
    checkpoint = convert.open_checkpoint(str(tmp_path / "ours"))
    # Training writes the lineage and not the folder of the tokenizer.
    trained = dataclasses.replace(checkpoint, folder="")
    export.write_huggingface(trained, str(tmp_path / "back"))
    assert ids_of(tmp_path / "back") == ids_of(folder)


def test_ids_go_through_growth(models: Path, tmp_path: Path) -> None:
    folder = with_ids(models / "llama", tmp_path / "hf", {"eos_token_id": 7}, None)
    convert.write_checkpoint(convert.open_source("hf", str(folder)), str(tmp_path / "ours"))
    growth_map = make_map(shape(), None, "stack", factor=2)
    stream(str(tmp_path / "ours"), str(tmp_path / "grown"), growth_map)
    export.write_huggingface(
        convert.open_checkpoint(str(tmp_path / "grown")), str(tmp_path / "back")
    )
    assert ids_of(tmp_path / "back") == ids_of(folder)


def test_a_checkpoint_without_ids_exports_those_of_the_tokenizer_named(tmp_path: Path) -> None:
    write_source(tmp_path / "ours")
    (tmp_path / "tokenizer").mkdir()
    pieces = {"model": {"vocab": {"</s>": 9, "<pad>": 3}}}
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(pieces))
    named = {"eos_token": "</s>", "pad_token": "<pad>"}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(named))
    export.write_huggingface(
        convert.open_checkpoint(str(tmp_path / "ours")),
        str(tmp_path / "hf"),
        tokenizer=str(tmp_path / "tokenizer"),
    )
    assert ids_of(tmp_path / "hf") == [None, 9, 3, None, 9, 3]


def test_a_padding_id_beyond_the_vocabulary_is_refused(models: Path, tmp_path: Path) -> None:
    """Transformers does not load it."""
    folder = with_ids(models / "llama", tmp_path / "hf", {"pad_token_id": 39}, None)
    cut = import_transforms.with_vocab(convert.open_source("hf", str(folder)), 32)
    with pytest.raises(UserError, match="pad_token_id is 39 and the vocabulary has 32 entries"):
        export.write_huggingface(cut, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
