"""Runs that are killed, stopped and moved, in processes of their own, go on as if nothing was."""

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from prts_jax import cli
from prts_jax.checkpoint.layout import complete_steps, read_lineage, resolve
from tests.train.tiny import assert_same, curve, read_lines, stored_params

pytestmark = pytest.mark.slow

STEPS = 200
EVERY = 5  # steps between checkpoints: most kills fall near a save
LONG = (
    f"--config.train.steps={STEPS}",
    f"--config.checkpoint.every_steps={EVERY}",
    "--config.evaluation.every_steps=15",
)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("interrupted")


@pytest.fixture(scope="module")
def undisturbed(workdirs, stores) -> Path:
    """The run that nobody interrupts."""
    finish(*stores.flags(), *LONG, f"--workdir={workdirs / 'undisturbed'}")
    return workdirs / "undisturbed"


def assert_same_run(workdir: Path, expected: Path) -> None:
    """Every line of metrics and every bit of the final parameters agree."""
    ours, theirs = curve(read_lines(workdir)), curve(read_lines(expected))
    assert [line["step"] for line in ours] == list(range(STEPS + 1))
    assert ours == theirs
    actual, wanted = (read_lineage(resolve(str(of))) for of in (workdir, expected))
    assert (actual.step, actual.digests) == (wanted.step, wanted.digests)
    assert_same(stored_params(workdir), stored_params(expected))


def wait_for_step(process: subprocess.Popen[str], workdir: Path, step: int) -> None:
    """Returns when the run has written a line of this step or a later one."""
    metrics, patience = workdir / "metrics.jsonl", time.monotonic() + 240
    while time.monotonic() < patience:
        if metrics.exists() and len(metrics.read_text().splitlines()) > step:
            return
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached")


def finish(*arguments: str) -> None:
    """Runs `prts train` in this process, on its one device."""
    assert cli.main(["train", *arguments]) == 0


def test_a_run_killed_before_its_first_checkpoint_and_at_random_moments_is_the_same_to_the_bit(
    undisturbed, workdirs, stores, start_prts
):
    workdir, moments = workdirs / "killed", random.Random(2)
    arguments = (*stores.flags(), *LONG, f"--workdir={workdir}")
    process = start_prts("train", *arguments)
    wait_for_step(process, workdir, 0)
    process.kill()
    process.wait()
    assert complete_steps(str(workdir / "checkpoints")) == []
    killed_after = []
    for round_ in range(5):
        process = start_prts("train", *arguments)
        # Each round goes further than the last, to a moment between two steps or inside a save.
        wait_for_step(process, workdir, int((round_ + moments.random()) * STEPS / 6))
        time.sleep(moments.random() * 0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        killed_after.append(read_complete(workdir))
    finish(*arguments)
    assert killed_after[-1] > STEPS / 2
    assert_same_run(workdir, undisturbed)


def read_complete(workdir: Path) -> int:
    """Returns how many whole lines a run has written."""
    return (workdir / "metrics.jsonl").read_text().count("\n")


def test_sigterm_saves_and_the_run_goes_on_to_the_bit(undisturbed, workdirs, stores, start_prts):
    workdir = workdirs / "stopped"
    arguments = (*stores.flags(), *LONG, f"--workdir={workdir}")
    process = start_prts("train", *arguments)
    wait_for_step(process, workdir, 50)
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr[-3000:]
    step = read_lines(workdir)[-1]["step"]
    assert f"stopped by SIGTERM at step {step} and saved" in stderr
    assert "Traceback" not in stderr
    assert complete_steps(str(workdir / "checkpoints"))[-1] == step
    assert not (workdir / "DONE").exists()
    finish(*arguments)
    assert_same_run(workdir, undisturbed)


def test_sigterm_before_the_first_step_ends_with_75_too(workdirs, stores, start_prts):
    workdir = workdirs / "stopped at once"
    process = start_prts("train", *stores.flags(), *LONG, f"--workdir={workdir}")
    wait_for_step(process, workdir, 0)  # the line of step 0 comes before the compilation
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr[-3000:]


def test_a_second_run_in_the_same_workdir_is_refused(workdirs, stores, start_prts, capsys):
    workdir = workdirs / "contended"
    arguments = (*stores.flags(), "--config.train.steps=100000", f"--workdir={workdir}")
    first = start_prts("train", *arguments)
    wait_for_step(first, workdir, 3)
    assert cli.main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"process {first.pid} is writing there" in line
    wait_for_step(first, workdir, read_complete(workdir) + 3)  # and the first goes on


def test_a_run_moved_to_other_numbers_of_devices_agrees_to_rounding(
    undisturbed, workdirs, stores, run_prts
):
    workdir = workdirs / "moved"
    for devices, steps, mesh in ((1, 20, ()), (4, 40, ("--config.mesh.tensor=2",)), (2, 60, ())):
        arguments = (*stores.flags(), *LONG[1:], *mesh, f"--config.train.steps={steps}")
        run_prts("train", *arguments, f"--workdir={workdir}", devices=devices)
    ours, theirs = read_lines(workdir), read_lines(undisturbed)
    assert [line["step"] for line in ours] == list(range(61))
    np.testing.assert_allclose(
        [line["loss"] for line in ours[1:]],
        [line["loss"] for line in theirs[1:61]],
        rtol=1e-5,
    )
    assert [line["loss"] for line in ours[1:21]] == [line["loss"] for line in theirs[1:21]]
