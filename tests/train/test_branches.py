"""Branches of a trunk: the run that had decayed there, bit for bit, the trunk unharmed."""

import hashlib
import shutil
from pathlib import Path

import pytest

from prts_jax.errors import UserError
from prts_jax.train.loop import train
from tests.train import tiny

STABLE = {"schedule__kind": "wsd", "schedule__decay_start": 100, "schedule__decay_end": 200}
BRANCH = {"schedule__decay": "4 steps", "schedule__kind": "wsd"}


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trunk(stores, tmp_path_factory):
    """Eight steps at a constant rate, with checkpoints at steps 4 and 8 kept."""
    workdir = tmp_path_factory.mktemp("trunk") / "run"
    paths = {"data__train": stores.train, "data__validation": stores.validation}
    kept = {"checkpoint__every_steps": 100, "checkpoint__keep_every_tokens": 4 * 8 * 16}
    config = tiny.run_config(**paths, **STABLE, **kept, train__steps=8, checkpoint__keep=1)
    train(config, str(workdir))
    return workdir


def test_checkpoints_are_saved_and_kept_every_so_many_tokens(trunk):
    assert sorted(int(path.name) for path in (trunk / "checkpoints").iterdir()) == [4, 8]


@pytest.mark.slow
def test_a_branch_is_the_run_that_had_decayed_there(trunk, run, tmp_path):
    before = contents(trunk)
    decayed = {"schedule__kind": "wsd", "schedule__decay_start": 4, "schedule__decay_end": 8}
    run(tmp_path / "decayed", **decayed, train__steps=8)
    branch = STABLE | BRANCH | {"init__branch_from": f"{trunk}@4"}
    run(tmp_path / "branch", **branch)
    names = ("decayed", "branch")
    ends = [tiny.resolve(str(tmp_path / name)) for name in names]
    tiny.assert_same(*(tiny.stored_params(end) for end in ends))
    whole, tip = (tiny.read_lineage(end) for end in ends)
    assert whole.optimizer_digests == tip.optimizer_digests
    assert (whole.step, whole.tokens, whole.position) == (tip.step, tip.tokens, tip.position)
    assert contents(trunk) == before
    record = tip.branches[-1]
    assert (record.step, record.tokens, record.trunk) == (4, 4 * 8 * 16, f"{trunk}/checkpoints/4")
    first, *_ = tiny.read_lines(tmp_path / "branch")
    assert first["branch"]["trunk"] == record.trunk
    lines = [tiny.curve(tiny.read_lines(tmp_path / name))[-4:] for name in names]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_branch_resumes_and_has_no_branches_of_its_own(trunk, run, tmp_path):
    """After its last checkpoint is lost, the same command ends with the same parameters."""
    branch = STABLE | BRANCH | {"init__branch_from": f"{trunk}@4", "checkpoint__every_steps": 2}
    run(tmp_path / "branch", **branch)
    whole = tiny.stored_params(tmp_path / "branch")
    shutil.rmtree(tmp_path / "branch" / "checkpoints" / "8")
    (tmp_path / "branch" / "DONE").unlink()
    run(tmp_path / "branch", **branch)
    tiny.assert_same(tiny.stored_params(tmp_path / "branch"), whole)
    with pytest.raises(UserError, match="holds a branch from step 4; give .*@8 a workdir"):
        run(tmp_path / "branch", **branch | {"init__branch_from": f"{trunk}@8"})
    again = branch | {"init__branch_from": f"{tmp_path / 'branch'}@8"}
    with pytest.raises(UserError, match="decays since step 4"):
        run(tmp_path / "again", **again)


def test_a_branch_in_its_trunks_workdir_is_refused(trunk, run):
    before = contents(trunk)
    with pytest.raises(UserError, match="holds a run that is no branch"):
        run(trunk, **STABLE | BRANCH | {"init__branch_from": f"{trunk}@4"})
    assert contents(trunk) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule__decay": ""}, "give the length of the branch's decay"),
        ({"schedule__decay": "100%"}, "no length of a branch"),
        ({"schedule__peak": 1e-3}, r"config\.schedule\.peak: was 0\.003"),
        ({"init__grow_from": "other"}, "both grow_from and branch_from are set"),
    ],
)
def test_what_is_no_branch_is_refused(trunk, run, tmp_path, changes, message):
    branch = STABLE | BRANCH | {"init__branch_from": f"{trunk}@8"} | changes
    with pytest.raises(UserError, match=message):
        run(tmp_path / "branch", **branch)
