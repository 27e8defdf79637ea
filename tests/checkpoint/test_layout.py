"""How a user names a checkpoint, and what counts as one."""

import pytest

from prts_jax.checkpoint.layout import complete_steps, is_complete, read_lineage, resolve
from prts_jax.errors import UserError


def pretend(path, text="{}"):
    (path / "lineage").mkdir(parents=True)
    (path / "lineage" / "lineage.json").write_text(text)
    return path


@pytest.fixture
def workdir(tmp_path):
    for step in (2, 10, 9):
        pretend(tmp_path / "run" / "checkpoints" / str(step))
    (tmp_path / "run" / "checkpoints" / "11" / "params").mkdir(parents=True)
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
    assert not is_complete(str(workdir / "checkpoints" / "11"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}/nowhere", "does not exist"),
        ("{}@11", "no complete checkpoint of step 11; there are: 2, 9, 10"),
        ("{}/checkpoints/11", "no complete checkpoint there"),
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
