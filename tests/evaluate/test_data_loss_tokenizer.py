"""A store of another tokenizer than the model's is refused before anything is computed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from prts_jax.checkpoint.store import save_checkpoint
from prts_jax.errors import UserError
from prts_jax.evaluate.data_loss import open_store
from prts_jax.evaluate.loaded import load
from tests.checkpoint.tiny import MODEL, lineage_of, random_params
from tests.evaluate import worded
from tests.train.tiny import write_store


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path):
    trained_on, same, other = (
        write_store(tmp_path / name, 100, vocab=MODEL.vocab, tokenizer=tokenizer).directory
        for name, tokenizer in (("train", "a" * 64), ("same", "a" * 64), ("other", "b" * 64))
    )
    params = random_params()
    lineage = lineage_of(params)
    data = {**lineage.config["data"], "train": trained_on}
    lineage = dataclasses.replace(lineage, config={**lineage.config, "data": data})
    save_checkpoint(str(tmp_path / "ours"), params, lineage)
    ours = load(str(tmp_path / "ours"))
    assert open_store(ours, same).store.directory == same
    with pytest.raises(UserError, match=r"sha256 b{12}\) than .*ours was trained with \(a{12}\)"):
        open_store(ours, other)


def test_the_tokenizer_of_an_import_is_compared_by_its_pieces(tmp_path: Path):
    """The same pieces in another file are accepted."""
    pytest.importorskip("tokenizers")
    worded.write_checkpoint(tmp_path / "ours", imported=True)
    ours = load(str(tmp_path / "ours"))

    def store(name: str, change: Callable[[str], str]) -> str:
        written = write_store(tmp_path / name, 100, vocab=MODEL.vocab, tokenizer=name * 64)
        worded.write_tokenizer(Path(written.directory))
        file = Path(written.directory) / "tokenizer.json"
        file.write_text(change(file.read_text()))
        return str(written.directory)

    same = store("a", lambda text: f" {text}")
    assert open_store(ours, same).store.directory == same
    other = store("b", lambda text: text.replace('"cat"', '"cow"'))
    with pytest.raises(UserError, match=r"sha256 b{12}\) than .*ours was trained with"):
        open_store(ours, other)
