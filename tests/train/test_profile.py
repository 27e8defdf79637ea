"""Profiles of steps, asked for by a flag and by SIGUSR1, without another result of the run."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest

from prts_jax.config import LoggingConfig
from prts_jax.train import stage_loop
from prts_jax.train.profile import Profiler
from tests.train import tiny


def profiles(workdir) -> list[str]:
    return sorted(
        str(path.relative_to(workdir / "profile/plugins/profile"))
        for path in (workdir / "profile").rglob("*.xplane.pb")
    )


def signal_after(step: int, monkeypatch) -> None:
    """Sends SIGUSR1 to this process when so many steps have been dispatched."""
    dispatch = stage_loop._step

    def with_signal(setup, compiled, progress, batch):
        if progress.lineage.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return dispatch(setup, compiled, progress, batch)

    monkeypatch.setattr(stage_loop, "_step", with_signal)


def test_the_flag_and_the_signal_profile_steps_of_a_running_job(
    base, run, tmp_path, monkeypatch, capfd
):
    signal_after(4, monkeypatch)
    lines = run(tmp_path / "a", logging__profile_from=2, logging__profile_steps=2)
    assert tiny.curve(lines) == tiny.curve(tiny.read_lines(base.workdir))
    assert profiles(tmp_path / "a") == ["steps_2-3/host_0.xplane.pb", "steps_5-6/host_0.xplane.pb"]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("profile of")]
    folder = tmp_path / "a/profile"
    assert said[0] == (
        f"profile of steps 2 to 3 in {folder}/plugins/profile/steps_2-3; "
        f"`xprof --logdir={folder}` shows it"
    )
    trace = (folder / "plugins/profile/steps_2-3/host_0.xplane.pb").read_bytes()
    assert b"jit_train_step" in trace
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize("failing", ["start", "stop"])
def test_a_profile_that_fails_is_said_and_the_run_goes_on(
    run, tmp_path, monkeypatch, capfd, failing
):
    if failing == "start":
        jax.profiler.start_trace(str(tmp_path / "another"))
    else:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/profile").write_text("a file where the folder belongs")
    try:
        run(tmp_path / "a", train__steps=3, logging__profile_from=2, logging__profile_steps=1)
    finally:
        if failing == "start":
            jax.profiler.stop_trace()
    said = {
        "start": "no profile from step 2: Profile has already been started",
        "stop": "the profile from step 2 is lost: [Errno 20] Not a directory",
    }
    assert said[failing] in capfd.readouterr().err
    assert (tmp_path / "a/DONE").exists()


def test_a_profile_that_the_end_of_the_run_cuts_short_names_its_last_step(tmp_path):
    logging = LoggingConfig(profile_from=4, profile_steps=9)
    with Profiler(str(tmp_path)).listening() as profiler:
        for step in (3, 4):  # dispatched before steps 4 and 5, the last of the run
            profiler.between_steps(step, jnp.zeros(1), logging)
    assert profiles(tmp_path) == ["steps_4-5/host_0.xplane.pb"]
