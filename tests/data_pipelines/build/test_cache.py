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

from data_pipelines.build import progress
from data_pipelines.build.store_build import Rules
from data_pipelines.build.cache import cache
from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Fault
from data_pipelines.store.store import TokenStore
from data_pipelines.text.tokenizer import Tokenizer
from prts_jax.errors import UserError


class Bytes:
    """A task whose tokens are its files' bytes; a document is a line, unless it begins "bad"."""

    name = "bytes"
    split = "train"
    sources = ("odd", "even")

    def __init__(self, folder: Path):
        self.files = [str(file) for file in sorted(folder.iterdir())]
        self.tokenizer = Tokenizer(model=b"model", sha256="0" * 64, vocab_size=256, eos_id=10)
        self.read: list[int] = []

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        self.read.append(index)
        lines = Path(self.files[index]).read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if line.startswith(b"bad"):
                yield Fault("bad_json", number)
            else:
                tokens = np.frombuffer(line, np.uint8).astype(np.int32)
                yield Encoded(tokens, len(line) % 2, len(line))


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


def test_progress_has_rates_and_the_time_left(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines: list[str] = []
    cache(Bytes(inputs), tmp_path / "quiet", lines.append)
    assert [line.split(",")[0] for line in lines] == [f"bytes/train: file {i}/3" for i in (1, 3)]
    lines.clear()
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
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

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
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
    assert not list((tmp_path / "store").glob("shard-00001*"))

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
    before = (inputs / "a").stat()
    (inputs / "a").write_text("A" * (before.st_size - 1) + "\n")
    os.utime(inputs / "a", ns=(0, before.st_mtime_ns + 1))  # a clock may stand still meanwhile
    task = Bytes(inputs)
    store = cache(task, tmp_path / "store", silent)
    assert task.read == [0, 1, 2]
    assert bytes(store.read(0, 3).astype(np.uint8)) == b"AAA"


@pytest.mark.parametrize(
    "file", ["shard-00000.tokens", "shard-00000.ends", "shard-00000.sources", "shard-00000.json"]
)
@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_finished_file_that_was_damaged_meanwhile_is_made_again(
    inputs: Path, tmp_path: Path, file: str, damage: str
):
    cache(Bytes(inputs), tmp_path / "whole", silent)
    with pytest.raises(UserError, match="bad row"):
        cache(Failing(inputs), tmp_path / "store", silent)
    path = tmp_path / "store" / file
    path.unlink() if damage == "gone" else os.truncate(path, path.stat().st_size // 2)
    task = Bytes(inputs)
    cache(task, tmp_path / "store", silent)
    assert task.read == [0, 1, 2]
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


class Slow(Bytes):
    """Takes its time, so that it can be killed."""

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        for document in super().documents(index):
            time.sleep(0.05)
            yield document


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_cache import Slow
from data_pipelines.build.store_build import Rules
from data_pipelines.build.cache import cache

cache(Slow(Path(sys.argv[2])), sys.argv[3], lambda line: None, workers=int(sys.argv[4]))
"""


def start_slow_cache(inputs: Path, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """Runs `KILLED` in a process that leads a group of its own."""
    arguments = [str(Path(__file__).parent), str(inputs), str(folder), str(workers)]
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


@pytest.mark.parametrize("delay", [0.02, 0.2, 0.33])
def test_killed_anywhere_it_ends_with_the_same_bytes(inputs: Path, tmp_path: Path, delay: float):
    cache(Bytes(inputs), tmp_path / "whole", silent)
    folder = tmp_path / "store"
    process = start_slow_cache(inputs, folder, workers=1)
    deadline = time.monotonic() + 60
    while not (folder / "plan.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {record.stem for record in folder.glob("shard-*.json")}
    begun = {file.name.split(".")[0] for file in folder.glob("shard-*")}
    assert len(begun - finished) <= 1, "files are made one after the other here"
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(folder)

    task = Bytes(inputs)
    cache(task, folder, silent)
    assert len(task.read) == 3 - len(finished)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("delay", [0.1, 0.4])
def test_processes_killed_with_their_parent_end_with_the_same_bytes(
    inputs: Path, tmp_path: Path, delay: float
):
    cache(Bytes(inputs), tmp_path / "whole", silent)
    folder = tmp_path / "store"
    process = start_slow_cache(inputs, folder, workers=2)
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    while processes_of_group(process.pid):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    cache(Bytes(inputs), folder, silent)
    assert contents(folder) == contents(tmp_path / "whole")


def processes_of_group(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def corpus_of_many_files(folder: Path) -> Path:
    folder.mkdir()
    for number in range(9):
        bad = "bad line\n" if number % 4 == 3 else ""
        lines = "".join(f"line {i} of {number}\n" for i in range(number * 7))
        (folder / f"{number}").write_text(lines + bad + f"end {number}\n")
    return folder


@pytest.mark.parametrize("layout", ["mixed", "by_set"])
def test_any_number_of_processes_makes_the_same_bytes(tmp_path: Path, layout: str):
    folder = corpus_of_many_files(tmp_path / "input")
    made = []
    for workers in (1, 3, 20):
        rules = Rules(skip_bad=True, max_bad_fraction=0.1, layout=layout)
        cache(Bytes(folder), tmp_path / f"{workers}", silent, rules, workers)
        made.append(contents(tmp_path / f"{workers}"))
    assert made[0] == made[1] == made[2]


def test_an_error_in_a_process_is_the_parents_and_what_is_done_is_kept(tmp_path: Path):
    folder = corpus_of_many_files(tmp_path / "input")
    with pytest.raises(UserError, match=rf"bad_json: {folder}/3, line 22: "):
        cache(Bytes(folder), tmp_path / "store", silent, workers=2)
    assert (tmp_path / "store" / "shard-00000.json").exists()
    assert not (tmp_path / "store" / "index.json").exists()


class Dying(Bytes):
    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()


def test_a_process_that_is_killed_is_one_line(inputs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="a worker process died"):
        cache(Dying(inputs), tmp_path / "store", silent, workers=2)


def test_bad_rows_are_left_out_and_listed(tmp_path: Path):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a").write_text("one\nbad\ntwo\nbad\n")
    (folder / "b").write_text("three\n")
    rules = Rules(skip_bad=True, max_bad_fraction=0.4)
    store = cache(Bytes(folder), tmp_path / "store", silent, rules)
    assert bytes(store.read(0, store.tokens).astype(np.uint8)) == b"one\ntwo\nthree\n"
    index = json.loads((tmp_path / "store" / "index.json").read_bytes())
    assert (index["rows"], index["bad"]) == (5, {"bad_json": 2})
    assert [shard["bad"] for shard in index["shards"]] == [{"bad_json": [2, 4]}, {}]
    lines: list[str] = []
    cache(Bytes(folder), tmp_path / "store", lines.append, rules)
    assert lines[0].endswith("2 bad rows left out")
    with pytest.raises(UserError, match="2 of 5 rows, more than --on_error=fail allows"):
        cache(Bytes(folder), tmp_path / "store", silent)
    with pytest.raises(
        UserError, match="more than --max_bad_fraction=0.1; .*bad_json at a, line 2"
    ):
        cache(Bytes(folder), tmp_path / "store", silent, Rules(skip_bad=True, max_bad_fraction=0.1))


def test_the_first_bad_row_ends_a_strict_run(tmp_path: Path):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a").write_text("one\nbad\ntwo\n")
    with pytest.raises(UserError, match=rf"bad_json: {folder}/a, line 2: .*--on_error=skip"):
        cache(Bytes(folder), tmp_path / "store", silent)


def test_too_many_bad_rows_make_no_store_and_lose_no_work(tmp_path: Path):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a").write_text("one\ntwo\nbad\n")
    (folder / "b").write_text("three\n")
    few = Rules(skip_bad=True, max_bad_fraction=0.2)
    with pytest.raises(UserError, match="1 of 4 rows, .*=0.2; the first is bad_json at a, line 3"):
        cache(Bytes(folder), tmp_path / "store", silent, few)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path / "store")

    # A strict run does not take over what was made with gaps.
    with pytest.raises(UserError, match="bad_json: .*line 3"):
        cache(Bytes(folder), tmp_path / "store", silent)
    task = Bytes(folder)
    cache(task, tmp_path / "store", silent, Rules(skip_bad=True, max_bad_fraction=0.25))
    assert task.read == []


def test_by_set_puts_each_sets_documents_together_in_file_order(tmp_path: Path):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "a").write_text("aa\nb\ncc\nd\n")
    (folder / "b").write_text("ee\nf\n")
    store = cache(Bytes(folder), tmp_path / "store", silent, Rules(layout="by_set"))
    assert bytes(store.read(0, store.tokens).astype(np.uint8)) == b"b\nd\naa\ncc\nf\nee\n"
    assert store.source_ids(0, store.tokens).tolist() == [0] * 4 + [1] * 6 + [0] * 2 + [1] * 3
    with pytest.raises(UserError, match="another store is in the way: .* differs in layout"):
        cache(Bytes(folder), tmp_path / "store", silent)


def test_rules_and_workers_must_make_sense(inputs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--max_bad_fraction=1.5"):
        Rules(max_bad_fraction=1.5)
    with pytest.raises(UserError, match="--workers=0"):
        cache(Bytes(inputs), tmp_path / "store", silent, workers=0)
    assert not (tmp_path / "store").exists()


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


def test_a_store_on_gs_is_copied_there(inputs: Path):
    with pytest.raises(UserError, match="give a local --output and copy it"):
        cache(Bytes(inputs), "gs://bucket/store", silent)


def test_a_damaged_finished_store_is_not_reused(inputs: Path, tmp_path: Path):
    cache(Bytes(inputs), tmp_path / "store", silent)
    (tmp_path / "store" / "shard-00001.ends").write_bytes(b"")
    with pytest.raises(UserError, match="damaged token store"):
        cache(Bytes(inputs), tmp_path / "store", silent)
