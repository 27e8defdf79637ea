"""Digests of a tokenizer: recorded where its files are copied, compared where they are used."""

import dataclasses
from pathlib import Path

import pytest

from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.layout import read_lineage
from prts_jax.checkpoint.store import Checkpoints, save_checkpoint
from prts_jax.checkpoint.tokenizer import check_tokenizer, file_digests
from prts_jax.evaluate.store_tokenizer import check_store_tokenizer
from prts_jax.evaluate.tokenizer import tokenizer_of
from prts_jax.formats.convert import open_source, write_checkpoint
from prts_jax.formats.export import write_huggingface
from prts_jax.growth.operators import make_map
from prts_jax.special_ids import SpecialIds
from tests.checkpoint.tiny import MODEL, lineage_of, random_params
from tests.growth.on_disk.growing import grow_checkpoint
from tests.train.tiny import write_store

FILES = {"tokenizer.json": b'{"model": {}}', "tokenizer_config.json": b"{}"}
TWICE = make_map(MODEL, None, "stack", factor=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path, params = tmp_path / "checkpoint", random_params()
    recorded = {"tokenizer": file_digests(FILES), "special_ids": SpecialIds(ends=(2,))}
    lineage = dataclasses.replace(lineage_of(params), **recorded)
    save_checkpoint(str(path), params, lineage)
    (path / "tokenizer").mkdir()
    for name, contents in FILES.items():
        (path / "tokenizer" / name).write_bytes(contents)
    return str(path)


def saved_by_a_run(source: str, folder: Path) -> str:
    checkpoints = Checkpoints(str(folder), keep=1, keep_every_steps=0)
    checkpoints.carry_tokenizer(source, read_lineage(source))
    checkpoints.save(7, random_params(), None, lineage_of(random_params()))
    checkpoints.close()
    return checkpoints.path(7)


def test_growth_conversion_and_runs_record_what_they_copy(checkpoint: str, tmp_path: Path):
    grow_checkpoint(checkpoint, str(tmp_path / "grown"), TWICE, "stream")
    write_checkpoint(open_source("orbax", checkpoint), str(tmp_path / "converted"))
    run = saved_by_a_run(checkpoint, tmp_path / "run")
    for path in (str(tmp_path / "grown"), str(tmp_path / "converted"), run):
        assert read_lineage(path).tokenizer == file_digests(FILES)
        check_tokenizer(path, read_lineage(path))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_file_is_named_wherever_the_tokenizer_is_used(
    checkpoint: str, tmp_path: Path, name: str, damage: str
):
    lineage, file = read_lineage(checkpoint), Path(checkpoint, "tokenizer", name)
    store = write_store(tmp_path / "store", 100, vocab=MODEL.vocab)
    flipped = bytes([FILES[name][0] ^ 1]) + FILES[name][1:]
    file.unlink() if damage == "delete" else file.write_bytes(flipped)
    new = str(tmp_path / "new")
    for use in (
        lambda: tokenizer_of(checkpoint, lineage),
        lambda: check_store_tokenizer(checkpoint, lineage, store),
        lambda: grow_checkpoint(checkpoint, new, TWICE, "stream"),
        lambda: write_checkpoint(open_source("orbax", checkpoint), new),
        lambda: write_huggingface(open_source("orbax", checkpoint), new),
        lambda: saved_by_a_run(checkpoint, tmp_path / "run"),
    ):
        with pytest.raises(DamagedError, match=rf"tokenizer/{name}: (is not|cannot)") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert not Path(new).exists()


def test_checkpoints_of_older_versions_have_no_digests(checkpoint: str):
    lineage = dataclasses.replace(read_lineage(checkpoint), tokenizer={})
    Path(checkpoint, "tokenizer/tokenizer.json").write_bytes(b"another")
    check_tokenizer(checkpoint, lineage)
    assert "tokenizer" not in lineage.to_json()
