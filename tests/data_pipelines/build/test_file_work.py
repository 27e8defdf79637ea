"""A store made on object storage, step by step; `test_cache.py` makes them on a disk."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipelines.build.file_work import Build, Rules
from data_pipelines.build.cache import cache
from data_pipelines.text.native import Encoded
from data_pipelines.text.rows import Fault
from data_pipelines.store.store import TokenStore
from data_pipelines.text.tokenizer import Tokenizer
from data_pipelines.store.verify import verify
from prts_jax.errors import UserError
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)


class Letters:
    """A task whose documents are lines, and whose tokens their bytes."""

    name, split, sources = "letters", "train", ("all",)
    tokenizer = Tokenizer(
        model=b"model",
        sha256="9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4",
        vocab_size=256,
        eos_id=10,
    )

    def __init__(self, folder: Path):
        self.files = [str(file) for file in sorted(folder.iterdir())]

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        for line in Path(self.files[index]).read_bytes().splitlines(keepends=True):
            yield Encoded(np.frombuffer(line, np.uint8), 0, len(line))


@pytest.fixture
def task(tmp_path: Path) -> Letters:
    folder = tmp_path / "input"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(f"{name}\nfile {name}\n")
    return Letters(folder)


def test_on_object_storage_it_goes_on_where_it_was_stopped_and_has_the_bytes_of_a_disk(
    task: Letters,
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
):
    build = Build.of(task, fake_gcs, Rules())
    assert build.finished() is None
    build.begin()
    made = build.make(1)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(fake_gcs)

    again = Build.of(task, fake_gcs, Rules())
    again.begin()
    assert [again.kept(index) for index in range(3)] == [None, made, None]
    again.finish([again.make(0), made, again.make(2)])
    assert again.finished() is not None
    verify(fake_gcs)

    cache(task, tmp_path / "local", lambda line: None)
    fsspec.filesystem("gs").get(fake_gcs, str(tmp_path / "remote"), recursive=True)
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("local", "remote")
    ]
    assert contents[0].pop(".lock") == b""
    assert contents[0] == contents[1]


def test_only_its_own_leftovers_are_cleared_away(task: Letters, tmp_path: Path):
    left = ["plan.json.1-2.tmp", "index.json.1-2.tmp", "shard-00000.tokens.1-2.tmp"]
    (tmp_path / "store").mkdir()
    for name in [*left, "mine.tmp"]:
        (tmp_path / "store" / name).touch()
    cache(task, tmp_path / "store", lambda line: None)
    assert [file.name for file in (tmp_path / "store").glob("*.tmp")] == ["mine.tmp"]


def test_what_only_the_making_needed_is_cleared_away_after_a_kill_at_the_very_end(
    task: Letters, tmp_path: Path
):
    cache(task, tmp_path / "store", lambda line: None)
    names = {file.name for file in (tmp_path / "store").iterdir()}
    for name in ("plan.json", "shard-00002.json"):
        (tmp_path / "store" / name).write_text("{}")
    cache(task, tmp_path / "store", lambda line: None)
    assert {file.name for file in (tmp_path / "store").iterdir()} == names
