"""Folders of transformers that are damaged, wrapped, quantized or contradict themselves.

Each is read as transformers reads it, or refused in one line that names the file.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prts_jax.errors import UserError
from prts_jax.formats import config_json, huggingface, safetensors_files
from prts_jax.formats.model_source import ModelSource
from tests.formats.foreign_models import shape, write_plain

NORM = "model.norm.weight"
SINGLE, INDEX = safetensors_files.SINGLE, safetensors_files.INDEX


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_plain(root / "single", shape())
    write_plain(root / "shards", shape(), shard_bytes=4000)
    return root


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "single", tmp_path / "hf"))


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "shards", tmp_path / "hf"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        huggingface.open_model(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


DAMAGES: dict[str, bytes | None] = {
    "nested deep": b"[" * 100_000,
    "a value nested deep": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
    "a list": b'[["a", 1]]',
    "a number beyond reason": b'{"x":' + b"9" * 10_000 + b"}",
    "a folder": None,
}
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_json_file_is_named(folder: Path, name: str, damage: str) -> None:
    if name == INDEX:
        (folder / SINGLE).unlink()
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / name).unlink(missing_ok=True)
    content = DAMAGES[damage]
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content)
    assert f"{folder / name}: " in refusal(folder)


def test_a_loop_of_links_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").symlink_to(folder / "tokenizer_config.json")
    assert "tokenizer_config.json: cannot be read (Too many levels" in refusal(folder)


ODD = (None, "x", "", -1, 1.5, True, [], {}, [1], 10**30, math.nan, math.inf, "\udcff", "a\nb")


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_no_value_of_a_wrong_type_changes_the_model(architecture: str, tmp_path: Path) -> None:
    model = shape(architecture=architecture)
    config = config_json.config_json(model, "float32", 64)
    keys = {*config, *config_json.ID_KEYS, "use_sliding_window"}
    for key in sorted(keys - {"tie_word_embeddings", "rms_norm_eps"}):
        for value in ODD:
            if value is None and key in config_json.MAY_BE_NULL:
                continue  # an absent key
            values = {**config, key: value}
            try:
                assert config_json.read_config(values, "config.json") == model, (key, value)
                config_json.read_dtype(values, "config.json")
                config_json.special_ids_of(str(tmp_path), values)
            except UserError as refused:
                assert "\n" not in str(refused), (key, value)


def write_header(folder: Path, header: dict[str, Any] | str, more: bytes = b"") -> None:
    """Replaces the header of the single file; `more` follows the values."""
    content = (folder / SINGLE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    values = content[8 + length :]
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + values + more)


def header_of(folder: Path) -> dict[str, Any]:
    content = (folder / SINGLE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    return dict(header)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F4"}, "dtype 'F4' is unknown"),
        ({"dtype": [1]}, r"dtype \[1\] is unknown"),
        ({"shape": [-4, -4]}, "no natural number"),
        ({"shape": [16.5]}, "no natural number"),
        ({"shape": [10**30]}, "do not hold shape"),
        ({"shape": None}, "is no whole safetensors file"),
        ({"data_offsets": [math.inf, 64]}, "no natural number"),
        ({"data_offsets": [0, 1, 2]}, "is no whole safetensors file"),
        ({"data_offsets": [64, 128]}, "overlaps the tensor before it|leaves a gap"),
        ({"shape": [8], "data_offsets": [0, 32]}, "leaves a gap to the tensor before it"),
        ({"dtype": "I32"}, f"{NORM}: is int32, .* the model is quantized"),
    ],
)
def test_a_damaged_entry_of_a_header_is_refused(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    header = header_of(folder)
    header[NORM] = header[NORM] | change
    write_header(folder, header)
    with pytest.raises(UserError, match=message):
        huggingface.open_model(str(folder))


def test_a_header_that_the_library_refuses_is_refused(folder: Path) -> None:
    header = header_of(folder)
    twice = json.dumps(header)[:-1] + "," + json.dumps({NORM: header[NORM]})[1:]
    for text in ("[1]", "[" * 100_000, twice):
        write_header(folder, text)
        assert f"{folder / SINGLE}: is no whole safetensors file" in refusal(folder)
    write_header(folder, header, more=b"extra")
    assert "is damaged: 5 bytes follow its tensors" in refusal(folder)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: f"base_model.model.{name}", "is there: the model is wrapped in another one"),
        (lambda name: f"language_model.{name}", "is there: the model is wrapped in another one"),
        (
            lambda name: name.replace("_proj.weight", "_proj.qweight"),
            r"quantized or has an adapter",
        ),
        (
            lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"),
            "quantized or has an adapter",
        ),
    ],
)
def test_a_wrapped_or_quantized_model_is_said_to_be_one(
    folder: Path, rename: Callable[[str], str], message: str
) -> None:
    write_header(folder, {rename(name): entry for name, entry in header_of(folder).items()})
    with pytest.raises(UserError, match=message):
        huggingface.open_model(str(folder))


def equal(one: ModelSource, other: ModelSource) -> bool:
    return one.model == other.model and bool(
        (one.read("layers/mlp/up", 1) == other.read("layers/mlp/up", 1)).all()
    )


@pytest.mark.parametrize(
    "prefix", ["module._orig_mod.", "_orig_mod.module.", "_forward_module.module._orig_mod."]
)
def test_prefixes_of_wrappers_in_any_order_are_the_same_model(
    whole: Path, folder: Path, prefix: str
) -> None:
    write_header(folder, {f"{prefix}{name}": entry for name, entry in header_of(folder).items()})
    single = huggingface.open_model(str(whole / "single"))
    assert equal(huggingface.open_model(str(folder)), single)


def test_buffers_that_are_computed_are_ignored(whole: Path, folder: Path) -> None:
    header = header_of(folder)
    end = max(entry["data_offsets"][1] for entry in header.values())
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    for buffer in ("model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"):
        header[buffer] = empty
    write_header(folder, header)
    single = huggingface.open_model(str(whole / "single"))
    assert equal(huggingface.open_model(str(folder)), single)
    header["model.layers.0.self_attn.k_scale"] = empty
    write_header(folder, header)
    assert "self_attn.k_scale: is no tensor of a llama model" in refusal(folder)


def test_a_single_file_comes_before_an_index(whole: Path, shards: Path) -> None:
    (shards / INDEX).write_text('{"weight_map": {"other": "stale.safetensors"}}')
    shutil.copy(whole / "single" / SINGLE, shards)
    single = huggingface.open_model(str(whole / "single"))
    assert equal(huggingface.open_model(str(shards)), single)


@pytest.mark.parametrize(
    "weight_map",
    [
        {},
        None,
        [["a", "b"]],
        {"a": 1},
        {"a": ["b"]},
        {"a": "/etc/passwd"},
        {"a": "../x"},
        {"a": "\n"},
    ],
)
def test_an_index_names_files_beside_it(shards: Path, weight_map: Any) -> None:
    (shards / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert f"{shards / INDEX}: weight_map names no files beside it" in refusal(shards)


def test_a_tensor_in_two_shards_is_refused(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    other = copy.deepcopy(index)
    name, file = next(iter(index["weight_map"].items()))
    shutil.copy(shards / file, shards / "more.safetensors")
    other["weight_map"][name] = "more.safetensors"
    other["weight_map"]["x"] = file
    (shards / INDEX).write_text(json.dumps(other))
    assert "too; remove one" in refusal(shards)
