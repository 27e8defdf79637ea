"""Text as a store, by a tokenizer that takes each character for a token."""

from pathlib import Path

import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.evaluate.text_store import open_text

EOS = 0


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "a.md").write_text("xé")
    (tmp_path / "b" / "deep" / "1.txt").write_text("pq")
    (tmp_path / "b" / "2.txt").write_text("r")
    (tmp_path / "b" / "left.out").write_text("zzz")
    return tmp_path


def test_files_are_documents_and_folders_are_sources(folder: Path) -> None:
    store = open_text(str(folder), encode, EOS)
    assert store.sources == ("b", "text")
    # In the order of their paths: a.md, b/2.txt, b/deep/1.txt.
    assert store.read(0, 99).tolist() == [120, 233, EOS, 114, EOS, 112, 113, EOS]
    assert store.source_ids(0, 99).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert store.document_offsets(0, 99).tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert store.tokens == 8
    assert store.tokens_per_source.tolist() == [5, 3]
    assert store.text_bytes == (3, 3)  # é has two
    assert store.read(2, 3).tolist() == [EOS, 114, EOS]


def test_a_file_is_a_store_and_the_end_token_is_optional(folder: Path) -> None:
    store = open_text(str(folder / "b" / "left.out"), encode, None)
    assert store.sources == ("text",)
    assert store.read(0, 9).tolist() == [122, 122, 122]


def test_digests_distinguish_text_and_tokens(folder: Path) -> None:
    one = open_text(str(folder), encode, EOS)
    other = open_text(str(folder), lambda text: [1] * len(text), EOS)
    assert one.text_digest == other.text_digest
    assert one.fingerprint != other.fingerprint
    (folder / "a.md").write_text("xe")
    changed = open_text(str(folder), encode, EOS)
    assert changed.text_digest != one.text_digest
    (folder / "c.txt").write_text("")
    assert np.array_equal(open_text(str(folder), encode, None).read(0, 99), changed_without_ends())


def changed_without_ends() -> list[int]:
    return encode("xe" + "r" + "pq")


def test_missing_text_and_other_encodings_are_refused(tmp_path: Path) -> None:
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no text there; name a file, or a folder"):
            open_text(str(nothing), encode, EOS)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"latin\.txt: is not UTF-8"):
        open_text(str(tmp_path), encode, EOS)
