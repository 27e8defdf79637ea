"""Losses far above the running loss: judged in the step, skipped, repeated by a resume."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prts_jax.config import MeshConfig
from prts_jax.errors import UserError
from prts_jax.mesh import make_mesh
from prts_jax.train.spikes import FEWEST, WINDOW, judge, running_losses, to_keep
from tests.checkpoint.tiny import lineage_of
from tests.train import tiny

FALLING = [5 - 0.02 * step + 0.05 * np.sin(step) for step in range(60)]


def at_stage_step(stage_step: int, losses: list[float] = ()):
    empty = lineage_of({}, declarations={}, step=stage_step)
    return dataclasses.replace(empty, stage_step=stage_step, recent_losses=tuple(losses))


def skipped(losses: list[float], deviations: float) -> list[int]:
    config = tiny.run_config(train__skip_spikes=deviations, logging__spike_deviations=1.0)
    judged = jax.jit(lambda before, loss: judge(config, before, loss))
    state, steps = running_losses(config, at_stage_step(0), make_mesh(MeshConfig())), []
    for step, loss in enumerate(losses):
        result = judged(state, np.float32(loss))
        steps += [step] * bool(result.skip)
        past = np.array([x for x in losses[:step] if np.isfinite(x)][-WINDOW:])
        expected = 0.0
        if len(past) >= FEWEST:
            expected = (loss - past.mean()) / max(past.std(), 1e-3 * past.mean())
        np.testing.assert_allclose(result.deviations, expected, rtol=1e-3, atol=1e-3)
        state = result.losses
    return steps


@pytest.mark.parametrize(
    ("losses", "deviations", "steps"),
    [
        ([*FALLING, 9.0, *FALLING[-3:]], 5.0, [60]),
        ([*FALLING, 9.0], 0.0, []),
        ([*FALLING, 0.5], 5.0, []),
        ([*FALLING, *FALLING, 9.0], 5.0, [120]),
        ([2.0] * 40 + [2.001, 2.5], 5.0, [41]),
        ([2.0] * (FEWEST - 1) + [9.0], 5.0, []),
        ([2.0] * 30 + [np.nan, 2.0, 9.0], 5.0, [32]),
    ],
    ids=["spike", "off", "fall", "more than a window", "constant", "too early", "after a NaN"],
)
def test_a_loss_far_above_the_running_loss_is_skipped(losses, deviations, steps):
    assert skipped(losses, deviations) == steps


def test_the_running_loss_goes_through_the_lineage_and_ends_with_its_stage():
    config, mesh = tiny.run_config(train__skip_spikes=5.0), make_mesh(MeshConfig())
    kept = to_keep(running_losses(config, at_stage_step(3, [3.1, 2.9, 2.7]), mesh))
    assert kept == tuple(float(np.float32(loss)) for loss in (3.1, 2.9, 2.7))
    assert to_keep(running_losses(config, at_stage_step(3, kept), mesh)) == kept
    assert to_keep(running_losses(config, at_stage_step(0, kept), mesh)) == ()
    assert running_losses(tiny.run_config(), at_stage_step(3, kept), mesh) is None


def test_a_resume_repeats_a_skipped_spike(run, tmp_path, capfd):
    """The text of step 27 has another order than that of the steps before."""
    random = np.random.default_rng(0)
    documents = [
        (random.integers(32, 64, 128) if i == 26 else np.arange(128) % 32, 0) for i in range(32)
    ]
    tiny.write_store(tmp_path / "odd", documents=documents)
    odd = {
        "data__train": str(tmp_path / "odd"),
        "data__validation": "",
        "data__shuffle": False,
        "train__skip_spikes": 2.0,
        "checkpoint__every_steps": 25,
    }
    whole = run(tmp_path / "whole", **odd, train__steps=30)
    assert [line["step"] for line in whole if line.get("skipped")] == [27]
    assert "deviations above the running loss; skipped, batch at position 3328" in (
        capfd.readouterr().err
    )
    run(tmp_path / "resumed", **odd, train__steps=25)
    assert tiny.curve(run(tmp_path / "resumed", **odd, train__steps=30)) == tiny.curve(whole)
    ends = [tiny.resolve(str(tmp_path / name)) for name in ("whole", "resumed")]
    tiny.assert_same(*(tiny.stored_params(end) for end in ends))
    one, other = (tiny.read_lineage(end) for end in ends)
    assert (one.skipped, one.recent_losses) == (other.skipped, other.recent_losses)
    assert [skip.step for skip in one.skipped] == [27]
    stored = json.loads((tmp_path / "whole/checkpoints/30/lineage/lineage.json").read_text())
    assert len(stored["recent_losses"]) == 30


def test_a_negative_number_of_deviations_is_refused():
    with pytest.raises(UserError, match="train.skip_spikes: is -1"):
        tiny.run_config(train__skip_spikes=-1.0)
