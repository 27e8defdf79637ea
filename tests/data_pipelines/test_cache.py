import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.cache import cache
from data_pipelines.store import TokenStore
from data_pipelines.tokenizer import Tokenizer
from prts_jax.errors import UserError


class Bytes:
    """A task whose tokens are its files' bytes; a document is a line."""

    name = "bytes"
    split = "train"
    sources = ("odd", "even")

    def __init__(self, folder: Path):
        self.files = [str(file) for file in sorted(folder.iterdir())]
        self.tokenizer = Tokenizer(model=b"model", sha256="0" * 64, vocab_size=256, eos_id=10)
        self.read: list[int] = []

    def documents(self, index: int) -> Iterator[tuple[np.ndarray, int]]:
        self.read.append(index)
        for line in Path(self.files[index]).read_bytes().splitlines(keepends=True):
            yield np.frombuffer(line, np.uint8).astype(np.int32), len(line) % 2


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(f"{name}\nfile {name}\nlast line of {name}\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def silent(line: str) -> None:
    pass


def test_one_file_becomes_one_shard_and_nothing_is_lost(inputs: Path, tmp_path: Path):
    store = cache(Bytes(inputs), tmp_path / "store", silent)
    text = b"".join((inputs / name).read_bytes() for name in "abc")
    assert bytes(store.read(0, store.tokens).astype(np.uint8)) == text
    assert store.documents == 9
    assert store.sources == ("odd", "even")
    assert sorted(contents(tmp_path / "store")) == [
        ".lock",
        "index.json",
        *(f"shard-0000{i}.{part}" for i in range(3) for part in ("ends", "sources", "tokens")),
        "tokenizer.model",
    ]
    index = json.loads((tmp_path / "store" / "index.json").read_bytes())
    assert [shard["source_file"] for shard in index["shards"]] == ["a", "b", "c"]
    assert (tmp_path / "store" / "tokenizer.model").read_bytes() == b"model"


def test_progress_has_rates_and_the_time_left(inputs: Path, tmp_path: Path):
    lines: list[str] = []
    cache(Bytes(inputs), tmp_path / "store", lines.append)
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"bytes/train: file {number}/3, {24 * number} tokens, ")
        assert all(part in line for part in ("MB/s", "tokens/s", "left"))


def test_a_finished_store_is_reused(inputs: Path, tmp_path: Path):
    made = cache(Bytes(inputs), tmp_path / "store", silent)
    task, lines = Bytes(inputs), []
    assert cache(task, tmp_path / "store", lines.append).fingerprint == made.fingerprint
    assert task.read == []
    assert lines == [f"bytes/train: already cached in {tmp_path / 'store'}"]


def test_the_input_may_be_moved_as_a_whole(inputs: Path, tmp_path: Path):
    cache(Bytes(inputs), tmp_path / "store", silent)
    task = Bytes(inputs.rename(tmp_path / "elsewhere"))
    cache(task, tmp_path / "store", silent)
    assert task.read == []


class Failing(Bytes):
    """Fails in the middle of a file."""

    def documents(self, index: int) -> Iterator[tuple[np.ndarray, int]]:
        for number, document in enumerate(super().documents(index)):
            if (index, number) == (1, 1):
                raise UserError("bad row: b, line 2")
            yield document


def test_after_a_failure_only_the_missing_files_are_made(inputs: Path, tmp_path: Path):
    cache(Bytes(inputs), tmp_path / "whole", silent)
    with pytest.raises(UserError, match="bad row"):
        cache(Failing(inputs), tmp_path / "store", silent)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path / "store")
    assert not (tmp_path / "store" / "shard-00001.tokens").exists()

    task = Bytes(inputs)
    cache(task, tmp_path / "store", silent)
    assert task.read == [1, 2]
    left = [name for name in contents(tmp_path / "store") if name.endswith(".tmp")]
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "store")
    assert {name: resumed[name] for name in whole} == whole
    # What the failure left is out of the index, and taken over by name.
    assert left == []


def test_a_file_that_was_fetched_again_is_made_again(inputs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="bad row"):
        cache(Failing(inputs), tmp_path / "store", silent)
    (inputs / "a").write_text("a is longer now\n" * 9)
    task = Bytes(inputs)
    store = cache(task, tmp_path / "store", silent)
    assert task.read == [0, 1, 2]
    assert bytes(store.read(0, 15).astype(np.uint8)) == b"a is longer now"


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import Bytes
from data_pipelines.cache import cache

class Slow(Bytes):
    def documents(self, index):
        for document in super().documents(index):
            time.sleep(0.05)
            yield document

cache(Slow(Path(sys.argv[2])), sys.argv[3], lambda line: None)
"""


@pytest.mark.parametrize("delay", [0.02, 0.2, 0.33])
def test_killed_anywhere_it_ends_with_the_same_bytes(inputs: Path, tmp_path: Path, delay: float):
    cache(Bytes(inputs), tmp_path / "whole", silent)
    folder = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(inputs), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 60
    while not (folder / "plan.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(folder)

    cache(Bytes(inputs), folder, silent)
    assert contents(folder) == contents(tmp_path / "whole")


class OtherTask(Bytes):
    name = "others"


class OtherTokenizer(Bytes):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.tokenizer = Tokenizer(model=b"other", sha256="1" * 64, vocab_size=256, eos_id=10)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("other", "difference"), [(OtherTask, "task"), (OtherTokenizer, "tokenizer_sha256")]
)
def test_a_store_made_from_something_else_is_left_alone(
    inputs: Path, tmp_path: Path, finished: bool, other: type[Bytes], difference: str
):
    folder = tmp_path / "store"
    if finished:
        cache(Bytes(inputs), folder, silent)
    else:
        with pytest.raises(UserError, match="bad row"):
            cache(Failing(inputs), folder, silent)
    before = contents(folder)
    with pytest.raises(UserError, match=f"another store is in the way: .* differs in {difference}"):
        cache(other(inputs), folder, silent)
    assert contents(folder) == before


def test_a_finished_store_of_other_input_is_left_alone(inputs: Path, tmp_path: Path):
    cache(Bytes(inputs), tmp_path / "store", silent)
    (inputs / "a").write_text("changed\n")
    with pytest.raises(UserError, match="differs in input sizes"):
        cache(Bytes(inputs), tmp_path / "store", silent)
    (inputs / "d").write_text("new\n")
    with pytest.raises(UserError, match="differs in inputs"):
        cache(Bytes(inputs), tmp_path / "store", silent)


def test_two_writers_of_one_folder_are_refused(inputs: Path, tmp_path: Path):
    folder = tmp_path / "store"
    folder.mkdir()
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing"):
            cache(Bytes(inputs), folder, silent)


def test_a_folder_that_cannot_be_written_is_one_line(inputs: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the store"):
        cache(Bytes(inputs), tmp_path / "file" / "store", silent)


def test_a_damaged_finished_store_is_not_reused(inputs: Path, tmp_path: Path):
    cache(Bytes(inputs), tmp_path / "store", silent)
    (tmp_path / "store" / "shard-00001.ends").write_bytes(b"")
    with pytest.raises(UserError, match="damaged token store"):
        cache(Bytes(inputs), tmp_path / "store", silent)
