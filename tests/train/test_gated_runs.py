"""Runs whose growth has gates: shut at first, opening over steps, gone once they are open."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.errors import UserError
from prts_jax.growth.gates import Opening, opening
from prts_jax.growth.operators import make_map
from prts_jax.train import loop, stage_loop
from prts_jax.train.step import make_train_step
from tests.growth.on_disk.growing import stream
from tests.train import tiny
from tests.train.interrupting import Killed, call_during_step, kill
from tests.train.one_step import NO_CLIP, make_batch, start
from tests.train.tiny import assert_same, curve, read_lines, stored_params

WIDER = dataclasses.replace(tiny.MODEL, embed=40, mlp=64)
GATED = {
    "model": tiny.deeper(4),
    "init__growth__operator": "random",
    "init__growth__gate_steps": 4,
    "evaluation__every_steps": 1,
    "checkpoint__keep_every_steps": 2,
}


@pytest.fixture(scope="module")
def compiled():
    """(gates or not) of each train step that the run below compiled, in order."""
    return []


@pytest.fixture(scope="module")
def opened(base, compiled, tmp_path_factory):
    """The base grown by fresh layers whose gates open over four steps, trained for six."""
    workdir = tmp_path_factory.mktemp("gated") / "opened"
    original = stage_loop.make_train_step

    def counting(*arguments, **options):
        compiled.append(options["gates"] is not None)
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_loop, "make_train_step", counting)
        changes = {**GATED, "init__grow_from": str(base.workdir)}
        loop.train(tiny.changed(base.config, **changes), str(workdir))
    return workdir


def test_the_loss_right_after_growth_equals_the_sources(base, opened):
    before, after = read_lines(base.workdir)[-1], read_lines(opened)[0]
    assert after["growth"]["map"]["gates"] == {"layers": [0, 4]}
    assert after["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-6)


def test_once_open_the_step_is_compiled_without_gates_and_only_then(opened, compiled):
    assert compiled == [True, False]
    assert [line["stage_step"] for line in read_lines(opened)] == list(range(7))


def test_flops_are_those_of_the_grown_model_from_the_first_step(opened):
    lines = read_lines(opened)
    spent = {after["flops"] - before["flops"] for before, after in itertools.pairwise(lines)}
    assert len(spent) == 1


def test_validation_is_of_the_model_with_its_gates(opened, configure, tmp_path):
    """A checkpoint taken while they open says the same when it is evaluated by another run."""
    lines = read_lines(opened)
    changes = {**GATED, "init__start_from": f"{opened}@8", "train__steps": 1}
    loop.train(configure(**changes), str(tmp_path))
    assert lines[2]["step"] == 8
    again = read_lines(tmp_path)[0]
    assert again["stage_step"] == 0
    assert again["validation_loss"] == pytest.approx(lines[2]["validation_loss"], rel=1e-6)


def test_a_step_behind_open_gates_is_a_step_without():
    config = tiny.run_config(**NO_CLIP)
    growth_map = make_map(tiny.deeper(1), tiny.MODEL, "random", gate_steps=3)
    state, plain = start(config)
    gates = Opening(growth_map, before=3).at
    optimizer = loop.make_optimizer(config)
    gated = make_train_step(config, optimizer, gates=gates)
    copy = jax.tree.map(lambda leaf: leaf.copy(), state)
    actual, metrics = gated(copy, make_batch())
    expected, plain_metrics = plain(state, make_batch())
    assert float(metrics.loss) == pytest.approx(float(plain_metrics.loss), rel=1e-6)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_half_open_gates_are_grown_neither_by_a_run_nor_by_the_command(opened, configure, tmp_path):
    half_open = resolve(f"{opened}@8")
    assert opening(read_lineage(half_open)) is not None
    deeper = tiny.deeper(8)
    message = "gates of its growth by random are open only at step 10"
    config = configure(model=deeper, init__grow_from=half_open)
    with pytest.raises(UserError, match=message):
        loop.train(config, str(tmp_path / "run"))
    growth_map = make_map(tiny.deeper(4), deeper, "stack")
    with pytest.raises(UserError, match=message):
        stream(half_open, str(tmp_path / "grown"), growth_map)
    assert not (tmp_path / "grown").exists()


def test_a_stage_that_ends_with_shut_gates_is_refused_before_the_first(configure, tmp_path):
    growth = {"init": {"growth": {"operator": "random", "gate_steps": 5}}}
    stages = [
        {"steps": 2, "model": {"layers": 1}},
        {"steps": 4, "model": {"layers": 2}, **growth},
        {"steps": 2},
    ]
    message = r"growth\.stages\[2\]: the stage before it ends 1 steps before the gates"
    config = configure(model=tiny.deeper(4), growth__stages=stages)
    with pytest.raises(UserError, match=message):
        loop.train(config, str(tmp_path))


@pytest.mark.slow
def test_a_run_killed_while_gates_are_shut_half_open_and_open_is_the_same_to_the_bit(
    base, opened, configure, tmp_path, monkeypatch
):
    config = configure(**GATED, init__grow_from=str(base.workdir), checkpoint__every_steps=1)
    for killed in (7, 9, 11):
        with monkeypatch.context() as patch:
            call_during_step(patch, killed, kill)
            with pytest.raises(Killed):
                loop.train(config, str(tmp_path))
    loop.train(config, str(tmp_path))
    assert_same(stored_params(tmp_path), stored_params(opened))
    assert curve(read_lines(tmp_path)) == curve(read_lines(opened))


@pytest.mark.slow
def test_a_model_grown_wider_by_random_opens_axis_by_axis_and_learns(base, configure, tmp_path):
    changes = {
        "model": WIDER,
        "init__growth__operator": "random_width",
        "init__growth__gate_steps": 3,
        "init__grow_from": str(base.workdir),
        "train__steps": 12,
        "checkpoint__keep_every_steps": 4,
        "evaluation__every_steps": 0,
    }
    loop.train(configure(**changes), str(tmp_path))
    lines = read_lines(tmp_path)
    before = read_lines(base.workdir)[-1]["validation_loss"]
    assert lines[0]["growth"]["map"]["gates"] == {"mlp": [0, 3], "embed": [3, 6]}
    assert lines[0]["validation_loss"] == pytest.approx(before, rel=1e-5)
    assert lines[-1]["validation_loss"] < before
    grown, early = stored_params(tmp_path), stored_params(f"{tmp_path}@12")
    up = grown["layers/mlp/up"] - early["layers/mlp/up"]
    assert np.abs(up[..., 48:]).max() > 1e-4  # new units, open since step 3
    assert np.abs(up[:, 32:]).max() > 1e-4  # new components of the stream, open since step 6
