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

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Fault
from prts_jax import progress
from prts_jax.errors import UserError
from tests.data_pipelines.build.line_task import LineTask, contents, silent, write_files


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    files = {name: f"{name}\nfile {name}\nlast line of {name}\n" for name in "abc"}
    return write_files(tmp_path / "input", files)


def test_one_file_becomes_one_shard_and_nothing_is_lost(inputs: Path, tmp_path: Path):
    store = cache(LineTask(inputs), tmp_path / "store", silent)
    text = b"".join((inputs / name).read_bytes() for name in "abc")
    assert bytes(store.read(0, store.tokens).astype(np.uint8)) == text
    assert store.documents == 9
    assert store.sources == ("odd", "even")
    assert sorted(contents(tmp_path / "store")) == [
        ".lock",
        "checksums",
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
    cache(LineTask(inputs), tmp_path / "quiet", lines.append)
    assert [line.split(",")[0] for line in lines] == [f"bytes/train: file {i}/3" for i in (1, 3)]
    lines.clear()
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    cache(LineTask(inputs), tmp_path / "store", lines.append)
    assert len(lines) == 3
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"bytes/train: file {number}/3, {24 * number} tokens, ")
        assert all(part in line for part in (f"{24 * number} B of 72 B", "B/s", "tokens/s", "left"))


def test_a_finished_store_is_reused(inputs: Path, tmp_path: Path):
    first = cache(LineTask(inputs), tmp_path / "store", silent)
    task, lines = LineTask(inputs), []
    assert cache(task, tmp_path / "store", lines.append).fingerprint == first.fingerprint
    assert task.read == []
    assert lines == [f"bytes/train: already cached in {tmp_path / 'store'}"]


def test_a_moved_input_folder_reuses_the_store(inputs: Path, tmp_path: Path):
    cache(LineTask(inputs), tmp_path / "store", silent)
    task = LineTask(inputs.rename(tmp_path / "elsewhere"))
    cache(task, tmp_path / "store", silent)
    assert task.read == []


class Failing(LineTask):
    """Fails in the middle of a file."""

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        for number, document in enumerate(super().documents(index)):
            if (index, number) == (1, 1):
                raise UserError("bad row: b, line 2")
            yield document


def test_after_a_failure_only_missing_shards_are_written(inputs: Path, tmp_path: Path):
    cache(LineTask(inputs), tmp_path / "whole", silent)
    with pytest.raises(UserError, match="bad row"):
        cache(Failing(inputs), tmp_path / "store", silent)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path / "store")
    assert not list((tmp_path / "store").glob("shard-00001*"))

    task = LineTask(inputs)
    cache(task, tmp_path / "store", silent)
    assert task.read == [1, 2]
    left = [name for name in contents(tmp_path / "store") if name.endswith(".tmp")]
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "store")
    assert {name: resumed[name] for name in whole} == whole
    assert left == []


def test_a_changed_input_file_is_read_again(inputs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="bad row"):
        cache(Failing(inputs), tmp_path / "store", silent)
    before = (inputs / "a").stat()
    (inputs / "a").write_text("A" * (before.st_size - 1) + "\n")
    os.utime(
        inputs / "a", ns=(0, before.st_mtime_ns + 1)
    )  # a clock may not advance between the writes
    task = LineTask(inputs)
    store = cache(task, tmp_path / "store", silent)
    assert task.read == [0, 1, 2]
    assert bytes(store.read(0, 3).astype(np.uint8)) == b"AAA"


@pytest.mark.parametrize(
    "file", ["shard-00000.tokens", "shard-00000.ends", "shard-00000.sources", "shard-00000.json"]
)
@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_a_damaged_shard_is_written_again(inputs: Path, tmp_path: Path, file: str, damage: str):
    cache(LineTask(inputs), tmp_path / "whole", silent)
    with pytest.raises(UserError, match="bad row"):
        cache(Failing(inputs), tmp_path / "store", silent)
    path = tmp_path / "store" / file
    path.unlink() if damage == "gone" else os.truncate(path, path.stat().st_size // 2)
    task = LineTask(inputs)
    cache(task, tmp_path / "store", silent)
    assert task.read == [0, 1, 2]
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


KILLED = """
import sys
from pathlib import Path
from data_pipelines.build.cache import cache
from tests.data_pipelines.build.line_task import SlowTask, silent

cache(SlowTask(Path(sys.argv[1])), sys.argv[2], silent, workers=int(sys.argv[3]))
"""


def start_slow_cache(inputs: Path, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """Runs `KILLED` in a process that leads its own process group."""
    arguments = [str(inputs), str(folder), str(workers)]
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


@pytest.mark.parametrize("delay", [0.02, 0.2, 0.33])
def test_a_killed_build_continues_to_the_same_bytes(inputs: Path, tmp_path: Path, delay: float):
    cache(LineTask(inputs), tmp_path / "whole", silent)
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

    task = LineTask(inputs)
    cache(task, folder, silent)
    assert len(task.read) == 3 - len(finished)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("delay", [0.1, 0.4])
def test_workers_end_with_their_killed_parent_and_the_build_continues(
    inputs: Path, tmp_path: Path, delay: float
):
    cache(LineTask(inputs), tmp_path / "whole", silent)
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
    cache(LineTask(inputs), folder, silent)
    assert contents(folder) == contents(tmp_path / "whole")


def processes_of_group(group: int) -> list[int]:
    processes = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            processes.append(int(stat.parent.name))
    return processes


def corpus_of_many_files(folder: Path) -> Path:
    files = {}
    for number in range(9):
        bad = "bad line\n" if number % 4 == 3 else ""
        lines = "".join(f"line {i} of {number}\n" for i in range(number * 7))
        files[f"{number}"] = f"{lines}{bad}end {number}\n"
    return write_files(folder, files)


@pytest.mark.parametrize("layout", ["mixed", "by_set"])
def test_several_processes_write_the_same_bytes(tmp_path: Path, layout: str):
    folder = corpus_of_many_files(tmp_path / "input")
    rules = Rules(skip_bad=True, max_bad_fraction=0.1, layout=layout)
    stores = []
    for workers in (1, 3):
        cache(LineTask(folder), tmp_path / f"{workers}", silent, rules, workers)
        stores.append(contents(tmp_path / f"{workers}"))
    assert stores[0] == stores[1]


def test_a_workers_error_reaches_the_parent_and_finished_shards_stay(tmp_path: Path):
    folder = corpus_of_many_files(tmp_path / "input")
    with pytest.raises(UserError, match=rf"bad_json: {folder}/3, line 22: "):
        cache(LineTask(folder), tmp_path / "store", silent, workers=2)
    assert (tmp_path / "store" / "shard-00000.json").exists()
    assert not (tmp_path / "store" / "index.json").exists()


class Dying(LineTask):
    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()


def test_a_killed_worker_is_a_user_error(inputs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="a worker process died"):
        cache(Dying(inputs), tmp_path / "store", silent, workers=2)


def test_bad_rows_are_left_out_and_listed(tmp_path: Path):
    folder = write_files(tmp_path / "input", {"a": "one\nbad\ntwo\nbad\n", "b": "three\n"})
    rules = Rules(skip_bad=True, max_bad_fraction=0.4)
    store = cache(LineTask(folder), tmp_path / "store", silent, rules)
    assert bytes(store.read(0, store.tokens).astype(np.uint8)) == b"one\ntwo\nthree\n"
    index = json.loads((tmp_path / "store" / "index.json").read_bytes())
    assert (index["rows"], index["bad"]) == (5, {"bad_json": 2})
    assert [shard["bad"] for shard in index["shards"]] == [{"bad_json": [2, 4]}, {}]
    lines: list[str] = []
    cache(LineTask(folder), tmp_path / "store", lines.append, rules)
    assert lines[0].endswith("2 bad rows left out")
    with pytest.raises(UserError, match="2 of 5 rows, more than --on_error=fail allows"):
        cache(LineTask(folder), tmp_path / "store", silent)
    with pytest.raises(
        UserError, match="more than --max_bad_fraction=0.1; .*bad_json at a, line 2"
    ):
        cache(
            LineTask(folder), tmp_path / "store", silent, Rules(skip_bad=True, max_bad_fraction=0.1)
        )


def test_the_first_bad_row_ends_a_strict_run(tmp_path: Path):
    folder = write_files(tmp_path / "input", {"a": "one\nbad\ntwo\n"})
    with pytest.raises(UserError, match=rf"bad_json: {folder}/a, line 2: .*--on_error=skip"):
        cache(LineTask(folder), tmp_path / "store", silent)


def test_too_many_bad_rows_make_no_store_and_lose_no_work(tmp_path: Path):
    folder = write_files(tmp_path / "input", {"a": "one\ntwo\nbad\n", "b": "three\n"})
    few = Rules(skip_bad=True, max_bad_fraction=0.2)
    with pytest.raises(UserError, match="1 of 4 rows, .*=0.2; the first is bad_json at a, line 3"):
        cache(LineTask(folder), tmp_path / "store", silent, few)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path / "store")

    # A strict run does not reuse shards with rows left out.
    with pytest.raises(UserError, match="bad_json: .*line 3"):
        cache(LineTask(folder), tmp_path / "store", silent)
    task = LineTask(folder)
    cache(task, tmp_path / "store", silent, Rules(skip_bad=True, max_bad_fraction=0.25))
    assert task.read == []


def test_by_set_puts_each_sets_documents_together_in_file_order(tmp_path: Path):
    folder = write_files(tmp_path / "input", {"a": "aa\nb\ncc\nd\n", "b": "ee\nf\n"})
    store = cache(LineTask(folder), tmp_path / "store", silent, Rules(layout="by_set"))
    assert bytes(store.read(0, store.tokens).astype(np.uint8)) == b"b\nd\naa\ncc\nf\nee\n"
    assert store.source_ids(0, store.tokens).tolist() == [0] * 4 + [1] * 6 + [0] * 2 + [1] * 3
    with pytest.raises(UserError, match="another store is in the way: .* differs in layout"):
        cache(LineTask(folder), tmp_path / "store", silent)


def test_rules_and_workers_must_make_sense(inputs: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--max_bad_fraction=1.5"):
        Rules(max_bad_fraction=1.5)
    with pytest.raises(UserError, match="--workers=0"):
        cache(LineTask(inputs), tmp_path / "store", silent, workers=0)
    assert not (tmp_path / "store").exists()


class OtherTask(LineTask):
    name = "others"


class OtherTokenizer(LineTask):
    def __init__(self, folder: Path):
        super().__init__(folder, model=b"other")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("other", "difference"), [(OtherTask, "task"), (OtherTokenizer, "tokenizer_sha256")]
)
def test_a_store_of_another_task_or_tokenizer_is_refused_and_unchanged(
    inputs: Path, tmp_path: Path, finished: bool, other: type[LineTask], difference: str
):
    folder = tmp_path / "store"
    if finished:
        cache(LineTask(inputs), folder, silent)
    else:
        with pytest.raises(UserError, match="bad row"):
            cache(Failing(inputs), folder, silent)
    before = contents(folder)
    with pytest.raises(UserError, match=f"another store is in the way: .* differs in {difference}"):
        cache(other(inputs), folder, silent)
    assert contents(folder) == before


def test_a_finished_store_of_other_input_is_refused(inputs: Path, tmp_path: Path):
    cache(LineTask(inputs), tmp_path / "store", silent)
    (inputs / "a").write_text("changed\n")
    with pytest.raises(UserError, match="differs in input sizes"):
        cache(LineTask(inputs), tmp_path / "store", silent)
    (inputs / "d").write_text("new\n")
    with pytest.raises(UserError, match="differs in inputs"):
        cache(LineTask(inputs), tmp_path / "store", silent)


def test_two_writers_of_one_folder_are_refused(inputs: Path, tmp_path: Path):
    folder = tmp_path / "store"
    folder.mkdir()
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is writing there"):
            cache(LineTask(inputs), folder, silent)


def test_a_folder_that_cannot_be_written_is_a_user_error(inputs: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        cache(LineTask(inputs), tmp_path / "file" / "store", silent)


def test_an_output_on_gs_is_refused(inputs: Path):
    with pytest.raises(UserError, match="give a local --output and copy it"):
        cache(LineTask(inputs), "gs://bucket/store", silent)


def test_a_damaged_finished_store_is_not_reused(inputs: Path, tmp_path: Path):
    cache(LineTask(inputs), tmp_path / "store", silent)
    (tmp_path / "store" / "shard-00001.ends").write_bytes(b"")
    with pytest.raises(UserError, match="damaged token store"):
        cache(LineTask(inputs), tmp_path / "store", silent)
