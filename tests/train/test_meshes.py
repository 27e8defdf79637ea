"""The same run on other meshes and processes has the same losses, to rounding (float32)."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from prts_jax import cli
from prts_jax.checkpoint.layout import complete_steps, read_lineage, resolve
from prts_jax.heartbeats import parse
from tests.train.tiny import read_lines

pytestmark = [pytest.mark.slow, pytest.mark.alone]

STEPS = 6
RUN = (
    f"--config.train.steps={STEPS}",
    "--config.checkpoint.every_steps=3",
    "--config.optimizer.ema=0.7",
)
# Sums over the batch and over contracted dimensions are taken in another order. Measured over these
# steps: at most 2.2e-7 in losses and 7.3e-7 in gradient norms. The run of stages amplifies it in
# its last step with seed 0, to 3.0e-6 in the gradient norm; with seeds 1 to 5 it is below 3e-7.
# Wrong data or a missing collective would show as 1e-2.
ROUNDING = 1e-5
MESHES = {
    "fsdp=8": ("--config.mesh.fsdp=8",),
    "data=2 fsdp=2 tensor=2": (
        "--config.mesh.data=2",
        "--config.mesh.fsdp=2",
        "--config.mesh.tensor=2",
    ),
}
TWO_BY_FOUR = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("meshes")


def train_here(*arguments: str) -> None:
    """Runs `prts train` in this process, on its one device."""
    assert cli.main(["train", *arguments]) == 0


@pytest.fixture
def one_device(workdirs, stores) -> Path:
    """The run on one device that the others are compared with; made once."""
    if not (workdirs / "one" / "DONE").exists():
        train_here(*stores.flags(), *RUN, f"--workdir={workdirs / 'one'}")
    return workdirs / "one"


@pytest.fixture
def start_two(start_prts):
    """`start_two(*args)` starts two processes of four devices each, and returns both."""

    def start(*args: str):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        joined = (f"--coordinator=localhost:{port}", "--processes=2")
        return [start_prts("train", *args, *joined, f"--process={i}", devices=4) for i in (0, 1)]

    return start


@pytest.fixture
def run_two(start_two):
    """`run_two(*args)` runs `start_two` to its end and returns the first one's standard error."""

    def run(*args: str) -> str:
        processes = start_two(*args)
        errors = [process.communicate(timeout=500)[1] for process in processes]
        for process, stderr in zip(processes, errors, strict=True):
            assert process.returncode == 0, stderr[-4000:]
        return errors[0]

    return run


def assert_same_losses(workdir: Path, expected: Path, steps: int = STEPS) -> None:
    ours, theirs = read_lines(workdir), read_lines(expected)
    assert [line["step"] for line in ours] == list(range(steps + 1))
    validation = ("validation_loss", "validation_loss/verse", "validation_loss_ema")
    for name in ("loss", "gradient_norm", *validation):
        values = [
            [line[name] for line in lines[: steps + 1] if name in line] for lines in (ours, theirs)
        ]
        np.testing.assert_allclose(*values, rtol=ROUNDING, err_msg=name)


@pytest.mark.parametrize("mesh", MESHES)
def test_eight_devices_have_the_losses_of_one(one_device, workdirs, stores, run_prts, mesh):
    workdir = workdirs / mesh.replace(" ", "-")
    arguments = (*stores.flags(), *RUN, *MESHES[mesh], f"--workdir={workdir}")
    result = run_prts("train", *arguments, devices=8)
    for axis in mesh.split():
        name, size = axis.split("=")
        assert f"'{name}': {size}" in result.stderr
    assert_same_losses(workdir, one_device)


def test_moments_grow_and_teachers_teach_on_any_mesh(one_device, workdirs, stores, run_prts):
    """Along axes that are sharded and widen; the source's 2 key heads do not divide by 4."""
    lines = []
    uneven = ("--config.mesh.fsdp=2", "--config.mesh.tensor=4")
    for devices, mesh in ((1, ()), (8, uneven)):
        workdir = workdirs / f"grown on {devices}"
        arguments = (
            *stores.flags(),
            *mesh,
            "--config.train.steps=3",
            f"--config.init.grow_from={one_device}",
            "--config.init.growth.operator=split",
            "--config.init.growth.optimizer=copy",
            "--config.model.embed=64",
            "--config.model.heads=8",
            "--config.model.kv_heads=4",
            "--config.distillation.teacher=source",
            f"--workdir={workdir}",
        )
        if devices == 1:
            train_here(*arguments)
        else:
            run_prts("train", *arguments, devices=devices)
        lines.append(read_lines(workdir))
    for name in ("loss", "gradient_norm", "distillation_loss"):
        ours, theirs = ([line[name] for line in run[1:]] for run in lines)
        assert len(ours) == 3
        np.testing.assert_allclose(ours, theirs, rtol=ROUNDING, err_msg=name)


def test_two_processes_have_the_losses_of_one(one_device, workdirs, stores, run_two):
    workdir = workdirs / "two"
    stderr = run_two(*stores.flags(), *RUN, *TWO_BY_FOUR, f"--workdir={workdir}")
    assert "2 processes have joined" in stderr
    assert_same_losses(workdir, one_device)
    beats = parse("".join(path.read_text() for path in (workdir / "heartbeats").iterdir()))
    assert [(beat.host, beat.step, beat.ended) for beat in beats] == [
        (0, STEPS, True),
        (1, STEPS, True),
    ]
    [slowest] = {line["slowest_host"] for line in read_lines(workdir)[-1:]}
    assert slowest in (0, 1)


@pytest.mark.parametrize("first", [1, 2])
def test_a_checkpoint_of_one_process_resumes_in_two_and_the_other_way_round(
    one_device, workdirs, stores, run_two, first
):
    workdir = workdirs / f"first in {first}"
    arguments = (*stores.flags(), *RUN[1:], f"--workdir={workdir}")
    for processes, steps in ((first, 3), (3 - first, STEPS)):
        length = f"--config.train.steps={steps}"
        if processes == 1:
            train_here(*arguments, length)
        else:
            run_two(*arguments, length, *TWO_BY_FOUR)
    assert_same_losses(workdir, one_device)


def test_sigterm_stops_both_processes_at_one_step(workdirs, stores, start_two, run_prts):
    workdir = workdirs / "stopped"
    arguments = (*stores.flags(), *TWO_BY_FOUR, f"--workdir={workdir}")
    many = ("--config.train.steps=100000", "--config.checkpoint.every_steps=100000")
    processes = start_two(*arguments, *many)
    wait_for_lines(workdir, 5)
    os.kill(processes[1].pid, signal.SIGTERM)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], errors[0][-3000:]
    (step,) = {int(re.search(r"SIGTERM at step (\d+) and saved", text)[1]) for text in errors}
    assert complete_steps(str(workdir / "checkpoints")) == [step]
    assert read_lineage(resolve(str(workdir))).step == step
    run_prts("train", *arguments, *many[1:], f"--config.train.steps={step + 2}", devices=8)
    assert read_lines(workdir)[-1]["step"] == step + 2


def wait_for_lines(workdir: Path, count: int) -> None:
    metrics, patience = workdir / "metrics.jsonl", time.monotonic() + 500
    while not (metrics.exists() and metrics.read_text().count("\n") >= count):
        assert time.monotonic() < patience
        time.sleep(0.02)


def test_stages_in_two_processes_have_the_losses_of_one(workdirs, stores, run_two):
    arguments = (*stores.flags(), "--config=tests/train/tiny_staged.py")
    train_here(*arguments, f"--workdir={workdirs / 'stages'}")
    run_two(*arguments, *TWO_BY_FOUR, f"--workdir={workdirs / 'stages in two'}")
    assert_same_losses(workdirs / "stages in two", workdirs / "stages", steps=4)


def learned_on(base: Path) -> tuple[str, ...]:
    """Flags of growth by learned matrices, twice as deep and wide in the MLP."""
    return (
        f"--config.init.grow_from={base}",
        "--config.init.growth.operator=learned",
        "--config.init.growth.learn_steps=10",
        "--config.model.layers=4",
        "--config.model.mlp=96",
        "--config.train.steps=1",
    )


def test_two_processes_learn_the_map_that_one_learns(one_device, workdirs, stores, run_two):
    flags = (*stores.flags(), *learned_on(one_device))
    train_here(*flags, f"--workdir={workdirs / 'learned'}")
    run_two(*flags, *TWO_BY_FOUR, f"--workdir={workdirs / 'learned in two'}")
    one, two = (read_lines(workdirs / name) for name in ("learned", "learned in two"))
    assert [line["position"] for line in two] == [line["position"] for line in one]
    learning, expected = (lines[0]["growth"]["learning"] for lines in (two, one))
    assert learning["flops"] == expected["flops"]
    # Adam divides by what is near zero at first, which makes more of rounding.
    for name in ("first_loss", "last_loss"):
        np.testing.assert_allclose(learning[name], expected[name], rtol=1e-4, err_msg=name)
    lineage = read_lineage(resolve(str(workdirs / "learned in two")))
    (digest,) = lineage.matrices
    assert digest == two[0]["growth"]["map"]["matrices"]["digest"]


def test_sigterm_while_two_processes_learn_a_map_ends_both(one_device, workdirs, stores, start_two):
    workdir = workdirs / "stopped learning"
    flags = (*stores.flags(), *learned_on(one_device), *TWO_BY_FOUR, f"--workdir={workdir}")
    processes = start_two(*flags, "--config.init.growth.learn_steps=100000")
    for line in processes[0].stderr:
        if "learning the growth map" in line:
            break
    os.kill(processes[1].pid, signal.SIGTERM)
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], errors[0][-3000:]
    (step,) = {int(re.search(r"at step (\d+) of learning", text)[1]) for text in errors}
    assert 0 < step < 100000
    assert not complete_steps(str(workdir / "checkpoints"))


def test_a_mistake_ends_both_processes(workdirs, stores, start_two, start_prts):
    """The lock is held by a third: the first process learns it, and the second must not hang."""
    workdir = workdirs / "contended"
    arguments = (*stores.flags(), "--config.train.steps=100000", f"--workdir={workdir}")
    holder = start_prts("train", *arguments)
    wait_for_lines(workdir, 2)
    processes = start_two(*arguments, *TWO_BY_FOUR)
    errors = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert f"process {holder.pid} is writing there" in errors[0]


def test_process_0_killed_ends_the_other_in_one_line(workdirs, stores, start_two):
    """JAX's coordination service dies with process 0; its client aborts the other process."""
    workdir = workdirs / "killed"
    flags = (*TWO_BY_FOUR, "--config.train.steps=100000", f"--workdir={workdir}")
    killed, left = start_two(*stores.flags(), *flags)
    wait_for_lines(workdir, 1)
    killed.kill()
    *_, line = left.communicate(timeout=60)[1].splitlines()
    assert left.returncode == 75
    expected = r"prts train: process 0( of 2)? does not answer; start the same command .*"
    assert re.fullmatch(expected, line)
