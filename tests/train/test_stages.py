"""Runs in stages: one command, one lineage, one file of metrics; resumable in every stage."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest

from prts_jax.checkpoint.layout import complete_steps, read_lineage, resolve
from prts_jax.config import to_dict
from prts_jax.errors import Interrupted, UserError
from prts_jax.model.architecture import declare
from prts_jax.model.counts import training_flops_per_token
from prts_jax.train import loop, stage_loop
from prts_jax.train.origin import newest_origin
from prts_jax.train.stages import remaining_stages
from tests.train import tiny
from tests.train.interrupting import Killed, call_during_step, kill, kill_before_stage
from tests.train.tiny import assert_same, curve, read_lines, stored_params

STEP_TOKENS = 8 * 16
LAST = {"growth": {"operator": "last"}}
# The whole run is of four layers; the first two stages say that they are shallower.
GRADUAL = [
    {"steps": 3, "model": {"layers": 1}},
    {"steps": 3, "model": {"layers": 2}},
    {"steps": 3, "init": LAST, "schedule": {"peak": 1e-3}},
]
CHANGES = {
    "model": tiny.deeper(4),
    "growth__stages": GRADUAL,
    "checkpoint__every_steps": 5,
    "init__growth__gate_steps": 7,  # for operators that open gates; these do not, and inherit it
}


def flops_per_step(layers: int) -> int:
    model = tiny.deeper(layers)
    return STEP_TOKENS * training_flops_per_token(model, declare(model), 16)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, stores) -> Path:
    """1 → 2 → 4 layers, three steps each, that nobody interrupts; made once."""
    workdir = tmp_path_factory.mktemp("staged") / "undisturbed"
    paths = {"data__train": stores.train, "data__validation": stores.validation}
    loop.train(tiny.run_config(**paths, **CHANGES), str(workdir))
    return workdir


def without_stage(lines):
    return [{key: line[key] for key in ("step", "loss", "flops", "position")} for line in lines]


def test_a_run_grows_on_its_way_in_one_lineage(undisturbed):
    lines = read_lines(undisturbed)
    assert [line["step"] for line in lines] == list(range(10))
    assert [line["stage"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [line["stage_step"] for line in lines] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]
    assert [line["position"] for line in lines] == [step * STEP_TOKENS for step in range(10)]
    spent = [0, *[flops_per_step(layers) for layers in (1, 1, 1, 2, 2, 2, 4, 4, 4)]]
    assert [line["flops"] for line in lines] == [sum(spent[: at + 1]) for at in range(10)]
    assert [line["step"] for line in lines if "growth" in line] == [3, 6]
    assert [line["learning_rate"] for line in lines[-2:]] == pytest.approx([1e-3, 1e-3])
    assert (undisturbed / "DONE").exists()

    lineage = read_lineage(resolve(str(undisturbed)))
    assert (lineage.step, lineage.stage, lineage.stage_step) == (9, 2, 3)
    assert [record.at_step for record in lineage.growth] == [3, 6]
    assert [record.map.operator for record in lineage.growth] == ["stack", "last"]
    assert lineage.growth[1].map.layers == (0, 1, 0, 1)
    assert lineage.config["schedule"]["peak"] == 1e-3


def test_the_line_of_growth_holds_what_the_model_was_worth_before(undisturbed):
    first, second = [line for line in read_lines(undisturbed) if "growth" in line]
    before = first["previous_stage"]
    assert (before["step"], before["stage"], before["stage_step"]) == (3, 0, 3)
    assert before["flops"] == first["flops"]
    assert before["validation_loss"] != first["validation_loss"]
    assert before["loss"] > 0
    assert "loss" not in first  # no step of this stage yet
    assert second["previous_stage"]["stage"] == 1
    assert "previous_stage" not in second["previous_stage"]


@pytest.mark.slow
def test_stages_are_what_runs_grown_one_from_another_are(undisturbed, run, tmp_path):
    """The same by three commands: a base, and twice a run that grows from the one before."""
    run(tmp_path / "base", model=tiny.deeper(1), train__steps=3)
    run(tmp_path / "two", model=tiny.deeper(2), train__steps=3, init__grow_from=f"{tmp_path}/base")
    lines = run(
        tmp_path / "four",
        model=tiny.deeper(4),
        train__steps=3,
        schedule__peak=1e-3,
        init__grow_from=f"{tmp_path}/two",
        init__growth__operator="last",
    )
    staged = read_lines(undisturbed)[-4:]
    assert [line["validation_loss"] for line in (lines[0], lines[-1])] == [
        line["validation_loss"] for line in (staged[0], staged[-1])
    ]
    assert without_stage(lines[1:]) == without_stage(staged[1:])
    assert_same(stored_params(tmp_path / "four"), stored_params(undisturbed))


def test_a_run_killed_in_and_between_stages_is_the_same_to_the_bit(
    undisturbed, configure, tmp_path, monkeypatch
):
    config = configure(**CHANGES)
    # At step 4 the line of growth is written, and the stage has no checkpoint yet.
    for step in (4, "between stages", 8):
        with monkeypatch.context() as patch:
            if step == "between stages":
                kill_before_stage(patch, 2)
            else:
                call_during_step(patch, step, kill)
            with pytest.raises(Killed):
                loop.train(config, str(tmp_path))
        assert not (tmp_path / "DONE").exists()
    loop.train(config, str(tmp_path))
    assert curve(read_lines(tmp_path)) == curve(read_lines(undisturbed))
    assert_same(stored_params(tmp_path), stored_params(undisturbed))


@pytest.mark.slow
def test_a_run_stopped_in_and_at_the_end_of_stages_is_the_same_to_the_bit(
    undisturbed, configure, tmp_path, monkeypatch
):
    config = configure(**CHANGES)
    for step in (2, 3, 4, 8):
        with monkeypatch.context() as patch:
            call_during_step(patch, step - 1, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Interrupted, match=f"stopped by SIGTERM at step {step} and saved"):
                loop.train(config, str(tmp_path))
        assert complete_steps(str(tmp_path / "checkpoints"))[-1] == step
        assert not (tmp_path / "DONE").exists()
    loop.train(config, str(tmp_path))
    assert_same(stored_params(tmp_path), stored_params(undisturbed))


def test_a_stage_is_compiled_once(configure, tmp_path, monkeypatch, capsys):
    compiled = []
    compile_together = stage_loop.compile_together

    def counting(*arguments, **options):
        compiled.append(arguments)
        return compile_together(*arguments, **options)

    monkeypatch.setattr(stage_loop, "compile_together", counting)
    stages = [{"steps": 2, "model": {"layers": 1}}, {"steps": 2}]
    loop.train(configure(growth__stages=stages, data__validation=""), str(tmp_path))
    assert len(compiled) == 2
    shown = capsys.readouterr().err
    assert "stage 2 of 2  step 2/2" in shown
    assert "stack: 1 → 2 layers" in shown  # the map, drawn
    assert "source 0 ●●" in shown
    assert "stage 1 of 2 is done: step 2" in shown


def test_a_stage_of_the_same_model_goes_on_with_it(configure, tmp_path):
    """Other rows a step, another rate; the data go on at the next token."""
    stages = [{"steps": 2}, {"steps": 2, "data": {"batch": 4}, "schedule": {"peak": 1e-4}}]
    loop.train(configure(growth__stages=stages), str(tmp_path))
    lines = read_lines(tmp_path)
    assert [line["stage"] for line in lines] == [0, 0, 1, 1, 1]
    assert [line["position"] // 16 for line in lines] == [0, 8, 16, 20, 24]
    before = lines[2]["previous_stage"]["validation_loss"]
    assert lines[2]["validation_loss"] == pytest.approx(before, rel=1e-6)  # batches of 4, not of 8
    assert all("growth" not in line for line in lines)


@pytest.mark.slow
def test_a_stage_may_train_only_what_is_new_and_is_charged_for_that(
    configure, tmp_path, monkeypatch
):
    """MSLT, killed and resumed in the stage that trains the two new layers of four."""
    new = {"train": {"trainable": "new"}, "init": LAST}
    stages = [{"steps": 2, "model": {"layers": 2}}, {"steps": 3} | new, {"steps": 1}]
    config = configure(model=tiny.deeper(4), growth__stages=stages, checkpoint__every_steps=1)
    keep = dataclasses.replace(config.checkpoint, keep_every_steps=1)
    config = dataclasses.replace(config, checkpoint=keep)
    with monkeypatch.context() as patch:
        call_during_step(patch, 4, kill)
        with pytest.raises(Killed):
            loop.train(config, str(tmp_path))
    loop.train(config, str(tmp_path))

    params = [stored_params(f"{tmp_path}@{step}") for step in (2, 3, 5, 6)]
    for path, (grew, first, last, after) in {
        path: [leaves[path] for leaves in params] for path in params[0]
    }.items():
        if path.startswith("layers/"):
            np.testing.assert_array_equal(last[:2], grew, err_msg=path)
            assert (last[2:] != first[2:]).any(), path
        elif path == "token_embedding":
            np.testing.assert_array_equal(last, grew, err_msg=path)
        assert (after != last).any(), path  # the last stage trains everything
    declarations = declare(tiny.deeper(4))
    frozen = training_flops_per_token(tiny.deeper(4), declarations, 16, frozen=(0, 1))
    spent = np.diff([line["flops"] for line in read_lines(tmp_path)])
    whole = [flops_per_step(layers) for layers in (2, 2)]
    assert list(spent) == [*whole, *[frozen * STEP_TOKENS] * 3, flops_per_step(4)]


def test_a_run_may_begin_with_no_layers_and_resumes_before_and_after_growth(
    configure, tmp_path, monkeypatch
):
    stages = [
        {"steps": 2, "model": {"layers": 0}},
        {"steps": 2, "init": {"growth": {"operator": "random"}}},
    ]
    config = configure(growth__stages=stages, checkpoint__every_steps=1)
    for killed in (0, 3):
        with monkeypatch.context() as patch:
            call_during_step(patch, killed, kill)
            with pytest.raises(Killed):
                loop.train(config, str(tmp_path))
    loop.train(config, str(tmp_path))
    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert read_lineage(resolve(str(tmp_path))).growth[0].map.layers == (-1, -1)
    assert all(abs(leaf).max() > 0 for leaf in stored_params(tmp_path).values())


# Changes of a stage, allowed and refused


def test_stages_to_come_may_change_and_the_one_that_is_trained_may_not(configure, tmp_path):
    stages = [{"steps": 2, "model": {"layers": 1}}, {"steps": 1}]
    loop.train(configure(growth__stages=stages[:1]), str(tmp_path))
    longer = configure(growth__stages=stages)
    (stage,) = remaining_stages(longer, newest_origin(str(tmp_path)))
    assert (stage.index, stage.config.train.steps, stage.config.model.layers) == (1, 1, 2)
    stages[0] = {"steps": 3, "model": {"layers": 1}, "optimizer": {"b1": 0.8}}
    with pytest.raises(UserError, match=r"config\.optimizer\.b1: was 0\.9 in the checkpoint"):
        loop.train(configure(growth__stages=stages), str(tmp_path))
    loop.train(longer, str(tmp_path))
    assert json.loads((tmp_path / "DONE").read_text())["step"] == 3
    with pytest.raises(UserError, match=r"are of stage 2, and the config has 1"):
        loop.train(configure(growth__stages=stages[:1]), str(tmp_path))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"steps": 1}, {"steps": 1, "model": {"layers": 1}}], r"stages\[1\]: .*no multiple"),
        (
            [{"steps": 1}, {"steps": 1, "model": {"layers": 4}, "init": {"growth": {"block": 2}}}],
            r"stages\[1\]: growth\.block: is 2, but the operator 'stack' takes no block",
        ),
        (
            [{"steps": 1}, {"steps": 1, "model": {"mlp": 64}}],
            r"stages\[1\]: config\.model\.mlp: 48 in the source, 64 in the target",
        ),
        (
            [{"steps": 1}, {"steps": 1, "train": {"trainable": "new"}}],
            r"stages\[1\]: config\.train\.trainable: is 'new'",
        ),
        ([{"steps": 1, "train": {"trainable": "new"}}], r"config\.train\.trainable: is 'new'"),
        ([{"steps": 1}, {"steps": 1, "data": {"length": 5000}}], "smaller than one window"),
        ([{"steps": 1}, {"steps": 1, "data": {"validation": "/nowhere"}}], "/nowhere"),
    ],
    ids=[
        "fewer layers",
        "operator",
        "width",
        "freezing",
        "freezing at first",
        "data",
        "validation",
    ],
)
def test_what_a_later_stage_cannot_do_is_refused_before_the_first(
    configure, tmp_path, stages, message
):
    with pytest.raises(UserError, match=message):
        loop.train(configure(growth__stages=stages), str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize("operator", ["stack", "learned", "interpolate", "split", "random_width"])
def test_settings_that_a_stage_inherits_and_its_operator_does_not_take_are_ignored(
    configure, tmp_path, operator
):
    inherited = {
        f"init__growth__{key}": value
        for key, value in {"gate_steps": 5, "block": 2, "drop": 1, "options": "own=1"}.items()
    }
    model = {"embed": 64} if operator in ("split", "random_width") else {"layers": 4}
    stage = {"steps": 1, "model": model, "init": {"growth": {"operator": operator}}}
    config = configure(growth__stages=[{"steps": 1}, stage], **inherited)
    assert len(remaining_stages(config, None)) == 2
    stage["init"]["growth"]["block"] = 2
    config = configure(growth__stages=[{"steps": 1}, stage], **inherited)
    with pytest.raises(UserError, match=rf"block: is 2, but the operator '{operator}' takes no"):
        remaining_stages(config, None)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("init__growth__operator", "growth.operator: 'gpt' is unknown"),
        ("model__architecture", "config.model.architecture: 'gpt' is unknown; it has llama, qwen3"),
    ],
)
def test_unknown_names_are_refused_in_a_run_without_growth(configure, tmp_path, key, message):
    with pytest.raises(UserError, match=message):
        remaining_stages(configure(**{key: "gpt"}), None)


@pytest.mark.slow
def test_exact_growth_in_width_and_then_in_depth(configure, tmp_path):
    """The first scales the norm's epsilon, of which the config of the second knows nothing."""
    wide = to_dict(tiny.MODEL) | {"embed": 64}
    stages = [
        {"steps": 1},
        {"steps": 1, "model": wide, "init": {"growth": {"operator": "zero_width"}}},
        {"steps": 1, "model": wide | {"layers": 4}},
    ]
    loop.train(configure(growth__stages=stages, evaluation__every_steps=0), str(tmp_path))
    model = read_lineage(resolve(str(tmp_path))).model
    assert (model.layers, model.embed) == (4, 64)
    assert model.norm_eps == tiny.MODEL.norm_eps / 2
