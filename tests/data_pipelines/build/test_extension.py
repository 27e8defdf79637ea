"""A store that begins with the shards of a finished one, compared with one made at once."""

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipelines.batches.order import ReadOrder
from data_pipelines.batches.packed import PackedBatches
from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.build.store_build import Build
from data_pipelines.chat.instructions import open_instructions
from data_pipelines.chat.packing import Packing
from data_pipelines.store.index import read_index
from data_pipelines.store.store import TokenStore
from data_pipelines.store.verify import verify
from prts_jax.errors import UserError
from tests.conftest import ROOT
from tests.data_pipelines.build.line_task import LineTask, contents, silent, write_files
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)
from tests.instruction_data import TOKENIZER, encode, many, write_lines

OLD = {"a.txt": "one\nand two\n", "b.txt": "three\n" * 50}
NEW = {"c.txt": "four\nfive is longer\n", "d.txt": "six\n"}
PACKING = Packing(80)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    cache(LineTask(write_files(tmp_path / "old files", OLD)), tmp_path / "old", silent)
    return tmp_path / "old"


def new_task(tmp_path: Path, files: dict[str, str] = NEW, **changes: object) -> LineTask:
    shutil.rmtree(tmp_path / "new files", ignore_errors=True)
    task = LineTask(write_files(tmp_path / "new files", files))
    for name, value in changes.items():
        setattr(task, name, value)
    return task


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("layout", ["mixed", "by_set"])
def test_an_extended_store_has_the_bytes_of_one_made_at_once(
    tmp_path: Path, layout: str, links: bool, monkeypatch: pytest.MonkeyPatch
):
    rules = Rules(layout=layout)
    cache(LineTask(write_files(tmp_path / "old files", OLD)), tmp_path / "old", silent, rules)
    before = contents(tmp_path / "old")
    if not links:

        def refuse(*paths: object) -> None:
            raise OSError(errno.EXDEV, "another disk")

        monkeypatch.setattr(os, "link", refuse)
    extending = dataclasses.replace(rules, extends=str(tmp_path / "old"))
    task = new_task(tmp_path)
    store = cache(task, tmp_path / "new", silent, extending)
    assert task.read == [0, 1]
    assert contents(tmp_path / "old") == before
    same = (tmp_path / "old/shard-00000.tokens").samefile(tmp_path / "new/shard-00000.tokens")
    assert same == links

    at_once = LineTask(write_files(tmp_path / "all files", OLD | NEW))
    expected = cache(at_once, tmp_path / "at once", silent, rules)
    ours, theirs = contents(tmp_path / "new"), contents(tmp_path / "at once")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"index.json"}
    assert store.fingerprint == expected.fingerprint
    index = read_index(tmp_path / "new")
    assert index["extends"] == read_index(tmp_path / "old")["fingerprint"] != store.fingerprint
    verify(tmp_path / "new")
    # Deleting the old store leaves the new one whole; a second start reuses it.
    again = new_task(tmp_path)
    cache(again, tmp_path / "new", silent, extending)
    assert again.read == []
    shutil.rmtree(tmp_path / "old")
    verify(tmp_path / "new")


def test_a_build_that_stopped_continues_to_the_same_bytes(old: Path, tmp_path: Path):
    rules = Rules(extends=str(old))
    whole = cache(new_task(tmp_path), tmp_path / "whole", silent, rules)
    build = Build.of(new_task(tmp_path), tmp_path / "new", rules)
    build.begin()
    build.write(1)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path / "new")
    (tmp_path / "new" / "shard-00001.tokens").unlink()  # an adopted file that was not there yet
    task = new_task(tmp_path)
    os.utime(task.files[1], ns=(0, 0))
    again = cache(task, tmp_path / "new", silent, rules)
    assert again.fingerprint == whole.fingerprint
    ours, theirs = contents(tmp_path / "new"), contents(tmp_path / "whole")
    assert ours == theirs


def test_sets_that_the_old_store_lacks_come_after_its_own(old: Path, tmp_path: Path):
    task = new_task(tmp_path, sources=("even", "more"))  # ids 0 and 1 become 1 and 2
    store = cache(task, tmp_path / "new", silent, Rules(extends=str(old)))
    assert store.sources == ("odd", "even", "more")
    first = TokenStore.open(old).tokens
    text = "".join(NEW.values())
    ids = store.source_ids(first, store.tokens - first).tolist()
    expected = [1 + len(line) % 2 for line in text.splitlines(keepends=True) for _ in line]
    assert ids == expected
    verify(tmp_path / "new")
    longer = cache(
        new_task(tmp_path, {"e.txt": "x\n"}, sources=store.sources),
        tmp_path / "newest",
        silent,
        Rules(extends=str(tmp_path / "new")),
    )
    assert longer.tokens == store.tokens + 2


def test_packed_instructions_are_extended_by_rows_of_new_files(tmp_path: Path):
    """The old sets end with the padding, so a new one comes after it."""
    texts = {"a/1.jsonl": many(30), "b/2.jsonl": many(9), "c/3.jsonl": many(20)}

    def build(names: list[str], to: str, **rules: str) -> TokenStore:
        for name in names:
            write_lines(tmp_path / to / name, texts[name])
        task = open_instructions(tmp_path / to, TOKENIZER, encode, PACKING)["train"]
        return cache(task, tmp_path / f"{to} store", silent, rules=Rules(packing=PACKING, **rules))

    def inputs(store: TokenStore) -> int:
        rows = PackedBatches(store, ReadOrder(PACKING.length, 1, overlap=False, documents=True))
        return rows.inputs(np.arange(rows.windows_per_epoch))

    first, both = build(["a/1.jsonl"], "old"), build(["a/1.jsonl", "b/2.jsonl"], "at once")
    extended = build(["b/2.jsonl", "c/3.jsonl"], "new", extends=first.directory)
    assert extended.sources == ("a", "padding", "b", "c")
    verify(extended.directory)
    assert inputs(extended) == inputs(both) + inputs(build(["c/3.jsonl"], "last"))
    for number in range(2):
        for suffix in ("tokens", "ends", "answers"):
            name = f"shard-{number:05d}.{suffix}"
            assert Path(extended.directory, name).read_bytes() == (
                Path(both.directory, name).read_bytes()
            )
    other = dataclasses.replace(PACKING, seed=1)
    task = open_instructions(tmp_path / "new", TOKENIZER, encode, other)["train"]
    with pytest.raises(UserError, match="its seed is 0, not the new files' 1; a store is"):
        cache(task, tmp_path / "x", silent, rules=Rules(packing=other, extends=first.directory))
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_is_refused_and_nothing_is_written(old: Path, tmp_path: Path):
    def refused(match: str, task: LineTask, output: str = "new", **rules: object) -> None:
        with pytest.raises(UserError, match=match):
            cache(task, tmp_path / output, silent, Rules(**({"extends": str(old)} | rules)))

    before = contents(old)
    other = LineTask(write_files(tmp_path / "other", NEW), b"another model")
    refused("--extend=.*: its tokenizer_sha256 is", other)
    refused("--extend=.*: its task is 'bytes', not the new", new_task(tmp_path, name="words"))
    refused("--extend=.*: its split is 'train'", new_task(tmp_path, split="validation"))
    refused("--extend=.*: its layout is 'mixed'", new_task(tmp_path), layout="by_set")
    refused(r"already has a\.txt and 1 more; give new files", new_task(tmp_path, NEW | OLD))
    refused(r"already has a\.txt;", new_task(tmp_path, {"a.txt": "another text\n"}))
    refused("is the --output too", new_task(tmp_path), output="old")
    refused("no finished token store", new_task(tmp_path), extends=str(tmp_path / "nothing"))
    assert contents(old) == before
    assert not (tmp_path / "new").exists()
    (old / "shard-00001.tokens").write_bytes(b"short")
    refused("damaged token store", new_task(tmp_path))


def test_one_file_under_two_names_is_recognised_by_its_size(old: Path, tmp_path: Path):
    folder = tmp_path / "deep" / "x"
    (tmp_path / "deep").mkdir()
    write_files(folder, {"a.txt": OLD["a.txt"]})
    write_files(tmp_path / "deep" / "y", {"z.txt": "z\n"})
    task = LineTask(folder)
    task.files = [str(folder / "a.txt"), str(tmp_path / "deep" / "y" / "z.txt")]
    with pytest.raises(UserError, match=r"already has x/a\.txt;"):
        cache(task, tmp_path / "new", silent, Rules(extends=str(old)))


def test_on_object_storage_shards_are_copied(
    old: Path,
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
):
    expected = cache(new_task(tmp_path), tmp_path / "new", silent, Rules(extends=str(old)))
    fsspec.filesystem("gs").put(str(old), f"{fake_gcs}/old", recursive=True)
    for base in (str(old), f"{fake_gcs}/old"):
        target = f"{fake_gcs}/from{base.count('gs')}"
        build = Build.of(new_task(tmp_path), target, Rules(extends=base))
        build.begin()
        build.finish([build.write(0), build.write(1)])
        assert TokenStore.open(target).fingerprint == expected.fingerprint
        verify(target)


KILLED = """
import os, pathlib, signal, sys
from data_pipelines.build import extension
from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from tests.data_pipelines.build.line_task import LineTask, silent

folder, where = pathlib.Path(sys.argv[1]), sys.argv[2]
calls = []

def killing(function):
    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return counted

if where == "adopting":
    extension._put = killing(extension._put)
else:
    LineTask.documents = killing(LineTask.documents)
cache(LineTask(folder / "new files"), folder / "new", silent, Rules(extends=str(folder / "old")))
"""


@pytest.mark.parametrize("where", ["adopting", "reading"])
def test_a_killed_extension_goes_on_to_the_same_bytes(old: Path, tmp_path: Path, where: str):
    before, rules = contents(old), Rules(extends=str(old))
    cache(new_task(tmp_path), tmp_path / "whole", silent, rules)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path / "new")
    task = new_task(tmp_path)
    cache(task, tmp_path / "new", silent, rules)
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")
    assert contents(old) == before
    verify(tmp_path / "new")
