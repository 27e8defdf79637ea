"""A store built on object storage, step by step; `test_cache.py` builds on a disk."""

from pathlib import Path

import fsspec
import pytest

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.build.store_build import Build
from data_pipelines.store.store import TokenStore
from data_pipelines.store.verify import verify
from prts_jax.errors import UserError
from tests.data_pipelines.build.line_task import LineTask, contents, silent, write_files
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)


@pytest.fixture
def task(tmp_path: Path) -> LineTask:
    files = {name: f"{name}\nfile {name}\n" for name in "abc"}
    return LineTask(write_files(tmp_path / "input", files))


def test_on_object_storage_a_build_continues_and_has_the_bytes_of_a_disk(
    task: LineTask,
    tmp_path: Path,
    fake_gcs: str,  # noqa: F811
):
    build = Build.of(task, fake_gcs, Rules())
    assert build.finished() is None
    build.begin()
    shard = build.write(1)
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(fake_gcs)

    again = Build.of(task, fake_gcs, Rules())
    again.begin()
    assert [again.kept(index) for index in range(3)] == [None, shard, None]
    again.finish([again.write(0), shard, again.write(2)])
    assert again.finished() is not None
    verify(fake_gcs)

    cache(task, tmp_path / "local", silent)
    fsspec.filesystem("gs").get(fake_gcs, str(tmp_path / "remote"), recursive=True)
    local, remote = contents(tmp_path / "local"), contents(tmp_path / "remote")
    assert local.pop(".lock") == b""
    assert local == remote


def test_a_build_removes_only_its_own_temporary_files(task: LineTask, tmp_path: Path):
    left = ["plan.json.1-2.tmp", "index.json.1-2.tmp", "shard-00000.tokens.1-2.tmp"]
    (tmp_path / "store").mkdir()
    for name in [*left, "mine.tmp"]:
        (tmp_path / "store" / name).touch()
    cache(task, tmp_path / "store", silent)
    assert [file.name for file in (tmp_path / "store").glob("*.tmp")] == ["mine.tmp"]


def test_plan_and_records_of_a_build_killed_at_its_end_are_removed(task: LineTask, tmp_path: Path):
    cache(task, tmp_path / "store", silent)
    names = {file.name for file in (tmp_path / "store").iterdir()}
    for name in ("plan.json", "shard-00002.json"):
        (tmp_path / "store" / name).write_text("{}")
    cache(task, tmp_path / "store", silent)
    assert {file.name for file in (tmp_path / "store").iterdir()} == names


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"layout": NaN}'])
def test_a_damaged_plan_is_one_line_with_the_remedy(task: LineTask, tmp_path: Path, content: bytes):
    Build.of(task, str(tmp_path / "store"), Rules()).begin()
    (tmp_path / "store" / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged plan: .*plan\.json: .*; delete the folder"):
        cache(task, tmp_path / "store", silent)
