"""Documents with their file and row, compared with a reader of the input files alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.store.documents import Documents
from data_pipelines.store.index import INDEX, fingerprint, read_index
from data_pipelines.store.store import TokenStore
from data_pipelines.store.verify import verify
from data_pipelines.text.folders import Format, open_folder
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE
from prts_jax.errors import UserError

MODEL = EMBEDDED_SHAKESPEARE / "tokenizer.model"
FILES = {
    "a.jsonl": [("one", "x"), None, ("two two", "y"), ("three and more", "x")],
    "b.jsonl": [("four", "y"), ("five is longer than a window of four tokens", "y"), ("six", "x")],
}


def make_store(folder: Path, layout: str) -> TokenStore:
    (folder / "input").mkdir()
    for name, rows in FILES.items():
        lines = [
            "no JSON" if row is None else json.dumps({"t": row[0], "s": row[1]}) for row in rows
        ]
        (folder / "input" / name).write_text("\n".join(lines) + "\n")
    form = Format("jsonl", "t", "s", ("x", "y"))
    task = open_folder(str(folder / "input"), "train", form, str(MODEL))
    rules = Rules(layout=layout, skip_bad=True, max_bad_fraction=1)
    return cache(task, folder / "store", lambda line: None, rules)


def brute_force(layout: str) -> list[tuple[str, int, str, list[int]]]:
    """Returns (file, row there, set, ids) in the order of the store."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    out = []
    for name, rows in FILES.items():
        for wanted in ("xy",) if layout == "mixed" else ("x", "y"):
            for number, row in enumerate(rows, 1):
                if row is not None and row[1] in wanted:
                    ids = [*processor.encode(row[0]), processor.eos_id()]
                    out.append((name, number, row[1], ids))
    return out


@pytest.mark.parametrize("layout", ["mixed", "by_set"])
def test_documents_and_windows_name_their_file_and_row(tmp_path: Path, layout: str):
    store = make_store(tmp_path, layout)
    documents, expected = Documents(store), brute_force(layout)
    for number, (file, row, of, ids) in enumerate(expected, 1):
        part = documents.document(number)
        assert (part.document, part.file, part.row, part.set) == (number, file, row, of)
        assert (part.tokens.tolist(), part.size, part.skipped) == (ids, len(ids), 0)

    owners = [(n, at) for n, (*_, ids) in enumerate(expected, 1) for at in range(len(ids))]
    assert store.tokens == len(owners)
    for start in range(store.tokens - 4):
        parts = documents.window(start, 5)
        flat = [(p.document, p.skipped + at) for p in parts for at in range(len(p.tokens))]
        assert flat == owners[start : start + 5]
        assert np.concatenate([p.tokens for p in parts]).tolist() == store.read(start, 5).tolist()


def test_windows_of_chosen_sets_name_documents_of_the_whole_store(tmp_path: Path):
    chosen = make_store(tmp_path, "by_set").only(["y"])
    parts = Documents(chosen).window(0, chosen.tokens)
    expected = [n for n, (_, _, of, _) in enumerate(brute_force("by_set"), 1) if of == "y"]
    assert [part.document for part in parts] == expected
    assert {part.set for part in parts} == {"y"}


def test_a_document_that_does_not_exist_is_refused(tmp_path: Path):
    documents = Documents(make_store(tmp_path, "mixed"))
    for number in (0, 7, -1, 10**30):
        with pytest.raises(UserError, match="has documents 1 to 6"):
            documents.document(number)


def test_the_fingerprint_does_not_depend_on_rows_and_verify_checks_them(tmp_path: Path):
    store = make_store(tmp_path, "mixed")
    index = read_index(store.directory)
    without = json.loads(json.dumps(index))
    for shard in without["shards"]:
        del shard["sha256"]["rows"]
    assert fingerprint(without) == index["fingerprint"]

    verify(store.directory)
    path = Path(store.directory) / "shard-00001.rows"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"shard-00001\.rows does not match its digest"):
        verify(store.directory)
    with pytest.raises(UserError, match=r"shard-00001\.rows does not match its checksum"):
        Documents(store).document(6)


def test_a_store_of_an_older_version_has_no_rows(tmp_path: Path):
    store = make_store(tmp_path, "mixed")
    index = json.loads((Path(store.directory) / INDEX).read_bytes())
    del index["checksums"], index["index_sha256"]
    for shard in index["shards"]:
        del shard["sha256"]["rows"]
    (Path(store.directory) / INDEX).write_text(json.dumps(index))
    part = Documents(TokenStore.open(store.directory)).document(3)
    assert part.row is None
    assert "a.jsonl, row unknown (store written by an older version), set x" in str(part)
