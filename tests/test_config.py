"""Configs: what survives, and what is refused with one line that names the key."""

import dataclasses
import json
import typing
from typing import Any

import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prts_jax.config import (
    CHOICES,
    CheckpointConfig,
    ComputeConfig,
    DistillationConfig,
    GrowthConfig,
    InitConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RopeScaling,
    RunConfig,
    ScalingConfig,
    ScheduleConfig,
    StageChanges,
    TrainConfig,
    check_model,
    default_config,
    from_dict,
    get,
    resolve,
    stage_configs,
    to_dict,
)
from prts_jax.errors import UserError

sizes = st.integers(1, 10**5)
positive = st.floats(1e-12, 1e12)
shares = st.floats(0, 1, exclude_max=True)
stages = st.builds(
    lambda steps, rate: StageChanges(steps=steps, schedule={"peak": rate}), sizes, positive
)


def section(section_type: type, **overrides: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any value of each field's type that `overrides` does not say more of."""
    by_type: dict[Any, st.SearchStrategy[Any]] = {
        int: sizes,
        float: positive,
        str: st.text(max_size=8),
        bool: st.booleans(),
        tuple[StageChanges, ...]: st.lists(stages, max_size=2).map(tuple),
    }
    fields = {
        name: section(hint) if dataclasses.is_dataclass(hint) else by_type[hint]
        for name, hint in typing.get_type_hints(section_type).items()
        if name not in overrides
    }
    return st.builds(section_type, **fields, **overrides)


def choice(key: str) -> st.SearchStrategy[str]:
    return st.sampled_from(CHOICES[key])


@st.composite
def models(draw: st.DrawFn) -> ModelConfig:
    low, stretch = draw(st.floats(0.1, 10)), draw(st.floats(0.1, 10))
    scaling = RopeScaling(draw(st.floats(1, 64)), low, low + stretch, draw(sizes))
    model = draw(
        section(
            ModelConfig,
            layers=st.integers(0, 100),
            head_dim=st.integers(1, 128).map(lambda half: 2 * half),
            rope_scaling=st.just(scaling),
        )
    )
    return dataclasses.replace(model, heads=model.kv_heads * draw(st.integers(1, 8)))


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    """Any config that makes sense, built field by field from the dataclasses."""
    config = draw(
        section(
            RunConfig,
            model=models(),
            compute=section(
                ComputeConfig,
                dtype=st.just("bfloat16"),
                attention=choice("compute.attention"),
                splash_blocks=st.sampled_from(["", "q=128,kv=256"]),
                remat=choice("compute.remat"),
            ),
            mesh=st.builds(
                MeshConfig,
                data=sizes,
                fsdp=st.just(-1) | sizes,
                sequence=sizes,
                tensor=sizes,
                rules=st.sampled_from(["", "vocab=fsdp+tensor,embed=none"]),
                reduce_gradients=choice("mesh.reduce_gradients"),
            ),
            init=section(
                InitConfig,
                kind=choice("init.kind"),
                start_from=st.just(""),
                branch_from=st.just(""),
                growth=section(
                    GrowthConfig,
                    operator=st.just("stack"),
                    optimizer=choice("init.growth.optimizer"),
                ),
            ),
            checkpoint=section(CheckpointConfig, keep_every_tokens=st.just(0)),
            distillation=section(DistillationConfig, teacher=st.just(""), weight=shares),
            optimizer=section(
                OptimizerConfig,
                kind=choice("optimizer.kind"),
                decay=choice("optimizer.decay"),
                b1=shares,
                b2=shares,
                momentum=shares,
                ema=shares,
            ),
            scaling=section(ScalingConfig, kind=st.just("none")),
            schedule=section(
                ScheduleConfig,
                kind=choice("schedule.kind"),
                after_growth=choice("schedule.after_growth"),
                warmup_steps=st.integers(0, 10),
                decay_start=st.integers(10, 20),
                decay_end=st.integers(21, 10**6),
                warmup=st.sampled_from(["", "2%", "30 steps"]),
                decay=st.sampled_from(["", "10%", "1.5B tokens"]),
            ),
            train=section(TrainConfig, trainable=choice("train.trainable")),
        )
    )
    data = dataclasses.replace(
        config.data,
        batch=config.train.accumulation * draw(st.integers(1, 64)),
        length=config.compute.loss_chunks * draw(st.integers(1, 64)),
        tokens_per_step=0,
    )
    if data.instructions:  # rows are read as they were packed
        data = dataclasses.replace(data, documents=True, overlap=False, block=0, mixture="")
    return dataclasses.replace(config, data=data)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The default config as plain dictionaries, with one key set (or added)."""
    values = to_dict(RunConfig())
    *parents, name = key.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[name] = value
    return values


def refusal(values: Any) -> str:
    with pytest.raises(UserError) as error:
        resolve(values)
    message = str(error.value)
    assert "\n" not in message
    return message


@settings(max_examples=60)
@given(run_configs())
def test_a_config_survives_dictionaries_json_and_ml_collections(config: RunConfig) -> None:
    values = to_dict(config)
    assert resolve(values) == config
    assert resolve(json.loads(json.dumps(values))) == config
    assert resolve(ml_collections.ConfigDict(values)) == config


def test_the_defaults_resolve() -> None:
    assert resolve(default_config()) == RunConfig()
    assert resolve({}) == RunConfig()


def test_a_config_is_frozen_and_hashable() -> None:
    """It is a static argument of jitted functions."""
    assert hash(resolve(default_config())) == hash(RunConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().model.layers = 7  # type: ignore[misc]


def test_a_config_file_cannot_set_a_key_that_does_not_exist() -> None:
    config = default_config()
    with pytest.raises(AttributeError):
        config.modle = 3
    with pytest.raises((AttributeError, KeyError)):
        config.model.layer = 3
    with pytest.raises((AttributeError, KeyError)):
        config.init.growth.factr = 3


def test_a_config_file_cannot_set_another_type() -> None:
    config = default_config()
    with pytest.raises(TypeError):
        config.model.layers = "six"


def test_integers_stand_for_floats() -> None:
    config = resolve(changed("model.rope_theta", 500000))
    assert config.model.rope_theta == 500000.0
    assert type(config.model.rope_theta) is float


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("modle", "model"),
        ("model.layer", "layers"),
        ("model.rope_scaling.facter", "factor"),
        ("init.growth.operater", "operator"),
        ("data.seeds", "seed"),
    ],
)
def test_an_unknown_key_at_any_depth_names_the_nearest(key: str, suggestion: str) -> None:
    assert refusal(changed(key, 1)) == (f"config.{key}: no such key; did you mean {suggestion!r}?")


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    message = refusal(changed("mesh.zzz", 1))
    names = "data, fsdp, sequence, tensor, rules, reduce_gradients"
    assert message == f"config.mesh.zzz: no such key; it has {names}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("model.layers", 6.0, "int"),
        ("model.layers", True, "int"),
        ("model.layers", "6", "int"),
        ("model.tied", 1, "bool"),
        ("schedule.peak", "3e-4", "float"),
        ("schedule.peak", False, "float"),
        ("data.train", None, "str"),
    ],
)
def test_a_wrong_type_is_named(key: str, value: Any, expected: str) -> None:
    message = refusal(changed(key, value))
    assert message.startswith(f"config.{key}: {value!r} is of type ")
    assert message.endswith(f"expected {expected}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    assert refusal(changed("optimizer.clip", value)).startswith("config.optimizer.clip: is ")


@pytest.mark.parametrize("value", [3, None, "model"])
def test_a_section_is_a_section(value: Any) -> None:
    assert refusal(changed("model", value)).startswith("config.model: is ")


def test_the_whole_is_a_section() -> None:
    assert refusal(None).startswith("config: is None")


@pytest.mark.parametrize("key", CHOICES)
def test_a_value_outside_its_choices_is_refused(key: str) -> None:
    message = refusal(changed(key, "zzz"))
    assert message == f"config.{key}: 'zzz' is unknown; it has {', '.join(CHOICES[key])}"


def test_a_misspelt_choice_names_the_nearest() -> None:
    message = refusal(changed("schedule.kind", "cosin"))
    assert message == "config.schedule.kind: 'cosin' is unknown; did you mean 'cosine'?"


def test_choices_are_of_keys_that_exist() -> None:
    for key, choices in CHOICES.items():
        assert get(RunConfig(), key) in choices


PACKED = {"instructions": True, "documents": True, "overlap": False}
IMPOSSIBLE: dict[str, dict[str, dict[str, Any]]] = {
    "config.model.vocab": {"model": {"vocab": 0}},
    "config.model.layers": {"model": {"layers": -1}},
    "config.model.heads": {"model": {"heads": 6, "kv_heads": 4}},
    "config.model.kv_heads": {"model": {"kv_heads": 0}},
    "config.model.head_dim": {"model": {"head_dim": 7}},
    "config.model.norm_eps": {"model": {"norm_eps": 0.0}},
    "config.model.rope_theta": {"model": {"rope_theta": -1.0}},
    "config.model.rope_scaling.factor": {"model": {"rope_scaling": {"factor": 0.5}}},
    "config.model.rope_scaling.high_freq_factor": {
        "model": {"rope_scaling": {"low_freq_factor": 4.0}}
    },
    "config.model.rope_scaling.original_length": {
        "model": {"rope_scaling": {"original_length": 0}}
    },
    "config.compute.attention": {"compute": {"attention": "splash", "dtype": "float32"}},
    "config.mesh": {"mesh": {"data": -1, "fsdp": -1}},
    "config.mesh.tensor": {"mesh": {"tensor": 0}},
    "config.data.length": {"data": {"length": 0}},
    "config.data.batch": {"data": {"batch": -8}},
    "config.optimizer.b2": {"optimizer": {"b2": 1.0}},
    "config.optimizer.eps": {"optimizer": {"eps": 0.0}},
    "config.optimizer.clip": {"optimizer": {"clip": -1.0}},
    "config.schedule.final": {"schedule": {"final": -0.1}},
    "config.schedule.decay_end": {"schedule": {"warmup_steps": 10, "decay_end": 10}},
    "config.schedule.decay_start": {
        "schedule": {"kind": "wsd", "warmup_steps": 10, "decay_start": 5}
    },
    "config.train.steps": {"train": {"steps": 0}},
    "config.train.accumulation": {"train": {"accumulation": 3}, "data": {"batch": 8}},
    "config.checkpoint.keep": {"checkpoint": {"keep": 0}},
    "config.evaluation.tokens": {"evaluation": {"tokens": -1}},
    "config.data.documents": {"data": {"instructions": True, "overlap": False}},
    "config.data.overlap": {"data": {"instructions": True, "documents": True}},
    "config.data.mixture": {"data": PACKED | {"mixture": "a=1"}},
    "config.data.block": {"data": PACKED | {"block": 2048}},
    "config.init": {"init": {"grow_from": "a", "start_from": "b"}},
    "config.init.growth.layers": {"init": {"grow_from": "a", "growth": {"operator": "layers"}}},
    "config.init.growth.factor": {"init": {"growth": {"factor": -4}}},
    "config.init.growth.gate_steps": {"init": {"growth": {"gate_steps": 2**31}}},
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_what_cannot_work_is_refused_by_the_name_of_its_key(key: str) -> None:
    assert refusal(IMPOSSIBLE[key]).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"layers": 0}},
        {"schedule": {"kind": "constant", "warmup_steps": 10, "decay_end": 0}},
        {"schedule": {"kind": "wsd", "warmup_steps": 10, "decay_start": 10, "decay_end": 11}},
        {"mesh": {"data": -1, "fsdp": 1}},
        {"optimizer": {"clip": 0.0}},
        {"compute": {"attention": "splash"}},
    ],
)
def test_what_is_only_unusual_is_not_refused(values: dict[str, Any]) -> None:
    resolve(values)


def test_a_shape_from_elsewhere_is_refused_by_where_it_stands() -> None:
    with pytest.raises(UserError, match=r"^checkpoint\.heads: 3 heads"):
        check_model(dataclasses.replace(ModelConfig(), heads=3, kv_heads=2), "checkpoint")


def test_a_section_alone_keeps_the_defaults_of_keys_left_out() -> None:
    assert from_dict(ModelConfig, {"layers": 2}) == dataclasses.replace(ModelConfig(), layers=2)


# Stages

STAGES = [{"steps": 2, "model": {"layers": 2}}, {"steps": 3, "schedule": {"peak": 1}}]


def test_a_stage_is_the_whole_runs_config_but_for_what_it_changes() -> None:
    config = resolve({"growth": {"stages": STAGES}, "model": {"layers": 4}, "train": {"steps": 9}})
    first, second = stage_configs(config)
    assert (first.train.steps, first.model.layers, first.schedule) == (2, 2, config.schedule)
    assert (second.train.steps, second.model.layers, second.schedule.peak) == (3, 4, 1.0)
    assert second.growth == config.growth
    assert stage_configs(RunConfig()) == (RunConfig(),)
    assert hash(config) == hash(resolve(to_dict(config)))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({}, "steps: is None; give the stage's steps, at least 1"),
        ({"steps": 0}, "steps: is 0"),
        ({"steps": 1.5}, "steps: is 1.5"),
        ({"steps": "0 tokens"}, "steps: is '0 tokens'"),
        ({"steps": "10%"}, "steps: is '10%'"),
        ({"steps": "some"}, "steps: is 'some'"),
        ({"steps": 1, "modle": {}}, "modle: no such key; did you mean 'model'?"),
        ({"steps": 1, "model": {"layer": 1}}, "model.layer: no such key; did you mean 'layers'?"),
        ({"steps": 1, "model": 3}, "model: is 3; expected a section with keys"),
        ({"steps": 1, "init": {"growth": {"factr": 2}}}, "init.growth.factr: no such key; did you"),
        ({"steps": 1, "train": {"steps": 3}}, "train.steps: write 'steps' beside 'train'"),
        ({"steps": 1, "growth": {"stages": []}}, "growth: a stage has no stages of its own"),
        ({"steps": 1, "init": {"grow_from": "x"}}, "init.grow_from: a stage goes on from the one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_a_stage_names_the_stage_and_the_key(stage: Any, message: str) -> None:
    refused = refusal({"growth": {"stages": [STAGES[0], stage]}})
    assert refused.startswith(f"config.growth.stages[1].{message}")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"model": {"layers": "two"}}, "model.layers: 'two' is of type str; expected int"),
        ({"model": {"heads": 3, "kv_heads": 2}}, "model.heads: 3 heads do not divide"),
        ({"schedule": {"kind": "cosin"}}, "schedule.kind: 'cosin' is unknown; did you mean"),
        ({"data": {"batch": 0}}, "data.batch: is 0"),
        ({"data": {"batch": 0, "tokens_per_step": 8}}, "data.batch: is 0"),
        ({"data": {"tokens_per_step": -1}}, "data.tokens_per_step: is -1"),
        (
            {"data": {"batch": 2, "length": 8, "tokens_per_step": 40}},
            "data.tokens_per_step: 40 is no multiple of data.batch × data.length = 16; give 32",
        ),
        ({"scaling": {"kind": "mup"}}, "scaling.embed: is 0; give that of the model"),
        ({"scaling": {"kind": "completep", "embed": 256}}, "scaling.layers: is 0"),
        (
            {"scaling": {"kind": "mup", "embed": 100}},
            "scaling.heads: is 0, and 16 × 100 / 1024 is no whole number; give that of the proxy",
        ),
        (
            {"scaling": {"kind": "mup", "embed": 256}, "optimizer": {"kind": "muon"}},
            "scaling.kind: mup scales the rates of adamw",
        ),
        (
            {"data": {"batch": 2, "tokens_per_step": 8192}, "train": {"accumulation": 2}},
            "data.tokens_per_step: derives train.accumulation",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_work_in_a_stage_is_refused_as_in_a_run(stage: Any, message: str) -> None:
    refused = refusal({"growth": {"stages": [STAGES[0], {"steps": 1} | stage]}})
    assert refused.startswith(f"config.growth.stages[1]: config.{message}")


def test_tokens_become_steps_and_micro_batches() -> None:
    data = {"batch": 4, "length": 8, "tokens_per_step": 64}
    (run,) = stage_configs(resolve({"data": data}))
    assert (run.data.batch, run.train.accumulation, run.data.tokens_per_step) == (8, 2, 0)
    assert stage_configs(run) == (run,)
    stages = [{"steps": "129 tokens"}, {"steps": "2k tokens", "data": {"tokens_per_step": 128}}]
    first, second = stage_configs(resolve({"data": data, "growth": {"stages": stages}}))
    assert (first.train.steps, first.data.batch, first.train.accumulation) == (3, 8, 2)
    assert (second.train.steps, second.data.batch, second.train.accumulation) == (16, 16, 4)


@pytest.mark.parametrize("stages", [3, "x", {"steps": 1}, [3], ["steps"]])
def test_stages_are_a_list_of_sections(stages: Any) -> None:
    assert refusal({"growth": {"stages": stages}}).startswith("config.growth.stages")
