"""Names of checkpoints, and the folders that count as one."""

import errno
import json
import math
import os
import random

import pytest

from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.layout import (
    complete_steps,
    is_complete,
    read_lineage,
    resolve,
    write_lineage,
)
from prts_jax.errors import StorageError, UserError
from tests.checkpoint.tiny import lineage_of, random_params


def pretend(path, text="{}"):
    (path / "lineage").mkdir(parents=True)
    (path / "lineage" / "lineage.json").write_text(text)
    return path


@pytest.fixture
def workdir(tmp_path):
    for step in (2, 10, 9):
        pretend(tmp_path / "run" / "checkpoints" / str(step))
    (tmp_path / "run" / "checkpoints" / "7" / "params").mkdir(parents=True)
    pretend(tmp_path / "run" / "checkpoints" / "12.orbax-checkpoint-tmp")
    return tmp_path / "run"


def test_a_workdir_means_its_newest_complete_checkpoint(workdir):
    assert resolve(str(workdir)) == str(workdir / "checkpoints" / "10")


def test_a_workdir_with_a_step_means_that_step(workdir):
    assert resolve(f"{workdir}@9") == str(workdir / "checkpoints" / "9")


def test_a_checkpoints_own_directory_means_itself(workdir, monkeypatch):
    assert resolve(f"{workdir}/checkpoints/2/") == str(workdir / "checkpoints" / "2")
    monkeypatch.chdir(workdir)
    assert resolve("checkpoints/2") == str(workdir / "checkpoints" / "2")


def test_a_directory_may_have_an_at_sign_in_its_name(tmp_path):
    path = pretend(tmp_path / "grown@24")
    assert resolve(str(path)) == str(path)


def test_a_workdir_whose_name_ends_like_a_step_is_a_workdir(workdir):
    named = workdir.rename(workdir.with_name("run@9"))
    assert resolve(str(named)) == str(named / "checkpoints" / "10")
    assert resolve(f"{named}@2") == str(named / "checkpoints" / "2")


def test_incomplete_and_temporary_checkpoints_do_not_count(workdir):
    assert complete_steps(str(workdir / "checkpoints")) == [2, 9, 10]
    assert not is_complete(str(workdir / "checkpoints" / "7"))


def test_a_newest_checkpoint_without_lineage_is_named_and_none_is_taken_in_its_place(workdir):
    (workdir / "checkpoints" / "11").mkdir()
    with pytest.raises(
        DamagedError, match=r"checkpoints/11: has no lineage/lineage\.json"
    ) as caught:
        resolve(str(workdir))
    assert caught.value.checkpoint == str(workdir / "checkpoints" / "11")
    assert resolve(f"{workdir}@10").endswith("/10")


@pytest.mark.parametrize("folder", ["", "10/lineage"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(
    workdir, monkeypatch, folder, code
):
    closed = workdir / "checkpoints" / folder
    listdir = os.listdir

    def refusing(path):
        if str(path) == str(closed):
            raise OSError(code, os.strerror(code), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    expected = UserError if code == errno.EACCES else StorageError
    with pytest.raises(expected, match=f"cannot be read .{os.strerror(code)}"):
        complete_steps(str(workdir / "checkpoints"))


def written(path, lineage):
    write_lineage(str(path), lineage)
    return path / "lineage" / "lineage.json"


def test_any_flipped_bit_of_a_lineage_is_noticed(tmp_path):
    """A flip that leaves the values as they are ("e" and "E" in a number) is none."""
    lineage = lineage_of(random_params())
    file = written(tmp_path / "c", lineage)
    whole = file.read_bytes()
    rng = random.Random(0)
    keys = [whole.index(key) for key in (b'"checksum_kind"', b'"checksum"', b'"format"')]
    places = [at + step for at in keys for step in range(12)]
    for spot in [*places, *rng.sample(range(len(whole)), 600)]:
        damaged = bytearray(whole)
        damaged[spot] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            assert read_lineage(str(tmp_path / "c")) == lineage, spot
        except DamagedError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is damaged"),
        (b"\xff\xfe{", "is damaged"),
        (b'{"format": 1, "step": NaN}', "lacks config"),
        (b'{"format": 1, "checksum": "0"}', "its checksum differs"),
        (None, "Is a directory"),
    ],
    ids=["deep", "no text", "not a number", "another checksum", "a folder"],
)
def test_what_is_no_lineage_is_one_line(tmp_path, content, message):
    file = written(tmp_path / "c", lineage_of(random_params()))
    file.unlink()
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(DamagedError, match=message) as caught:
        read_lineage(str(tmp_path / "c"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [{"step": "7"}, {"tokens": -1}, {"flops": math.nan}, {"growth": [3]}, {"config": {"model": 3}}],
    ids=str,
)
def test_values_of_wrong_kinds_in_an_older_lineage_are_one_line(tmp_path, change):
    file = written(tmp_path / "c", lineage_of(random_params()))
    file.write_text(json.dumps(lineage_of(random_params()).to_json() | change))
    with pytest.raises(DamagedError, match="is damaged"):
        read_lineage(str(tmp_path / "c"))


def test_a_checkpoint_of_a_run_has_the_step_of_its_directory(tmp_path):
    written(tmp_path / "checkpoints" / "8", lineage_of(random_params(), step=7))
    with pytest.raises(DamagedError, match=r"8: holds a checkpoint of step 7; .* rename it to 7"):
        read_lineage(str(tmp_path / "checkpoints" / "8"))
    written(tmp_path / "grown" / "8", lineage_of(random_params(), step=7))
    assert read_lineage(str(tmp_path / "grown" / "8")).step == 7


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}/nowhere", "does not exist"),
        ("{}@7", "no complete checkpoint of step 7; there are: 2, 9, 10"),
        ("{}/checkpoints/7", "no complete checkpoint there"),
        ("{}/checkpoints/99", "does not exist"),
        ("{}@", "does not exist"),
        ("{}/checkpoints/2/lineage/lineage.json", "no complete checkpoint there"),
    ],
)
def test_what_is_not_there_is_said(workdir, spec, message):
    with pytest.raises(UserError, match=message):
        resolve(spec.format(workdir))


def test_a_lineage_that_is_no_json_is_damaged(tmp_path):
    with pytest.raises(UserError, match=r"lineage\.json: is damaged"):
        read_lineage(str(pretend(tmp_path / "5", text="{")))


def test_a_folder_without_lineage_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint of prts_jax"):
        read_lineage(str(tmp_path))
