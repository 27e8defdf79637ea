"""A run with a damaged newest checkpoint: what it resumes from, and when it refuses to begin."""

import builtins
import os
import shutil
import signal
from pathlib import Path

import pytest

from benchmarks import damaged_files
from prts_jax.config import RunConfig
from prts_jax.errors import StorageError, UserError
from prts_jax.train.loop import train
from tests.train.tiny import changed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, RunConfig]:
    """A staged run with growth, trained to its end, and its config."""
    folder = tmp_path_factory.mktemp("faults")
    return folder, damaged_files.undisturbed(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("lineage/lineage.json", "flip", "moved aside"),
        ("lineage/lineage.json", "delete", "moved aside"),
        ("params/_METADATA", "cut", "moved aside"),
        ("optimizer/d/*", "empty", "moved aside"),
        ("optimizer/manifest.ocdbt", "delete", "moved aside"),
        ("_CHECKPOINT_METADATA", "empty", "unaffected"),
    ],
)
def test_a_run_goes_on_exactly_from_the_checkpoint_before(whole, file, damage, expected):
    folder, config = whole
    (case, *_) = (
        case
        for case in damaged_files.cases(folder, seed=3, flips=1)
        if (damaged_files.kind(case.file), case.damage) == (file, damage)
    )
    assert damaged_files.outcome(case, folder, config) == expected


def test_without_any_lineage_nothing_begins_and_nothing_is_touched(whole, capsys):
    folder, config = whole
    workdir = damaged_files.before_the_end(folder, "no lineage")
    for file in workdir.glob("checkpoints/*/lineage/lineage.json"):
        file.unlink()
    (workdir / "checkpoints" / "NOTES.txt").write_text("mine")
    entries = sorted(str(path) for path in workdir.rglob("*") if path.name != ".lock")
    message = r"6: has no lineage/lineage\.json; .* \(2 has no .*, 4 has no .*\): put the"
    with pytest.raises(UserError, match=message):
        train(config, str(workdir))
    assert sorted(str(path) for path in workdir.rglob("*") if path.name != ".lock") == entries
    assert "leaving alone what is no checkpoint: NOTES.txt" in capsys.readouterr().err


def test_a_run_with_nothing_but_damage_moved_aside_does_not_begin_anew(whole):
    folder, config = whole
    workdir = damaged_files.before_the_end(folder, "aside")
    for step in (2, 4):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    (workdir / "checkpoints" / "6").rename(workdir / "checkpoints" / "6.damaged-params")
    with pytest.raises(UserError, match=r"holds damaged checkpoints alone \(6\.damaged-params\)"):
        train(config, str(workdir))


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/6/lineage/lineage.json",
        "checkpoints/6/params/_METADATA",
        "checkpoints/6/optimizer/_METADATA",
        "metrics.jsonl",
    ],
)
def test_failing_storage_moves_nothing_aside_and_removes_nothing(whole, monkeypatch, name):
    folder, config = whole
    workdir = damaged_files.before_the_end(folder, "storage")
    metrics = (workdir / "metrics.jsonl").read_bytes()

    def stale(function):
        def call(path, *rest, **options):
            if str(path) == str(workdir / name):
                raise OSError(116, os.strerror(116), str(path))
            return function(path, *rest, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stale(os.stat))
        patch.setattr(builtins, "open", stale(builtins.open))
        with pytest.raises(StorageError, match="Stale file handle"):
            train(config, str(workdir))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4", "6"]
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_save_that_cannot_make_its_directory_ends_at_once(whole, monkeypatch):
    folder, config = whole
    config = changed(config, checkpoint__retry_minutes=0.0)
    workdir = damaged_files.before_the_end(folder, "full")
    mkdir = os.mkdir

    def full(path, *rest, **options):
        if "8.orbax-checkpoint-tmp" in str(path):
            raise OSError(28, os.strerror(28), str(path))
        return mkdir(path, *rest, **options)

    monkeypatch.setattr(os, "mkdir", full)
    signal.alarm(60)  # Orbax would wait for 300 s
    with pytest.raises(StorageError, match="8: could not be written .*No space left.*free space"):
        train(config, str(workdir))
    signal.alarm(0)
    monkeypatch.undo()
    train(config, str(workdir))
    assert damaged_files.end(workdir) == damaged_files.end(folder / "whole")
