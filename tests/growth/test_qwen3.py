"""Qwen3 through the whole project: growth in depth and width, training, conversion."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.cli import main
from prts_jax.config import ComputeConfig, ModelConfig, to_dict
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import init_leaf
from prts_jax.tree import flatten
from tests.growth import one_device
from tests.train import tiny

# An epsilon as large as this shows in the logits when a norm's scale does not make up for it.
QWEN3 = ModelConfig(
    architecture="qwen3",
    vocab=48,
    layers=2,
    embed=16,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp=24,
    norm_eps=1e-2,
    rope_theta=1e6,
)
COMPUTE = ComputeConfig(dtype="float32", attention="xla")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 12)), jnp.int32)
HEAD_NORMS = ("layers/attention/q_norm", "layers/attention/k_norm")


@functools.partial(jax.jit, static_argnums=1)
def apply(params, model: ModelConfig):
    return logits(params, TOKENS, model, COMPUTE)


def grown(growth_map: GrowthMap):
    return one_device.grow(one_device.params_of(growth_map.source), growth_map)


def change_of_logits(growth_map: GrowthMap) -> float:
    """Largest difference of the logits, relative to the largest logit."""
    before = apply(one_device.params_of(growth_map.source), growth_map.source)
    after = apply(grown(growth_map), growth_map.target)
    return float(jnp.abs(after - before).max() / jnp.abs(before).max())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("operator", "options", "allowed"),
    [
        ("zero", {"factor": 2}, 0.0),
        ("split", {"widths": "embed=32,mlp=48,heads=8,kv_heads=4"}, 2e-6),
        ("split", {"widths": "embed=32,mlp=48,heads=8,kv_heads=4", "weights": "uneven"}, 2e-6),
        ("split", {"widths": "embed=32,mlp=48", "factor": 2}, None),
        ("zero_width", {"widths": "embed=24,mlp=40,heads=8,kv_heads=4"}, 2e-6),
    ],
    ids=["deeper", "split", "uneven split", "deeper and wider", "zero width"],
)
def test_function_preserving_operators_keep_the_logits(operator, options, allowed, tied):
    growth_map = make_map(dataclasses.replace(QWEN3, tied=tied), None, operator, **options)
    assert growth_map.target.architecture == "qwen3"
    assert growth_map.function_preserving() == (allowed is not None)
    if allowed is not None:
        assert change_of_logits(growth_map) <= allowed


def test_stacked_layers_carry_their_head_norms():
    growth_map = make_map(QWEN3, None, "stack", factor=2)
    before, after = flatten(one_device.params_of(QWEN3)), flatten(grown(growth_map))
    for path in HEAD_NORMS:
        np.testing.assert_array_equal(after[path], jnp.tile(before[path], (2, 1)))


@pytest.mark.parametrize("operator", ["split", "zero_width"])
def test_a_wider_head_dim_is_refused_by_name(operator):
    with pytest.raises(UserError, match="head_dim from 8 to 16"):
        grown(make_map(QWEN3, None, operator, widths="head_dim=16"))


def test_another_architecture_is_no_target():
    target = dataclasses.replace(QWEN3, layers=4)
    with pytest.raises(UserError, match="architecture"):
        make_map(dataclasses.replace(QWEN3, architecture="llama"), target, "stack")


def test_fresh_head_norms_are_one_and_take_no_noise():
    growth_map = make_map(QWEN3, None, "stack", factor=2, noise=0.2)
    before, after = flatten(one_device.params_of(QWEN3)), flatten(grown(growth_map))
    for path in HEAD_NORMS:
        np.testing.assert_array_equal(after[path][2:], before[path])
        assert (init_leaf(path, declare(QWEN3)[path], 2, "paper", 0) == 1).all()


def test_a_qwen3_is_imported_trained_grown_and_exported(tmp_path, capsys):
    """With the public commands: transformers → train → grow → inspect → transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.formats.foreign_models import load_transformers, logits_of, save_transformers

    model = dataclasses.replace(QWEN3, vocab=64, norm_eps=1e-6, tied=True)
    save_transformers(tmp_path / "hf", model)
    paths = {name: str(tmp_path / name) for name in ("hf", "start", "run", "grown", "out")}

    argv = ["--from=hf", f"--source={paths['hf']}", "--to=orbax", f"--target={paths['start']}"]
    assert main(["convert", *argv]) == 0

    tiny.write_store(tmp_path / "store")
    sizes = [f"--config.model.{key}={value}" for key, value in to_dict(model).items()]
    sizes = [flag for flag in sizes if "rope_scaling" not in flag]
    config = [
        f"--config={tiny.__file__}",
        *sizes,
        f"--config.data.train={tmp_path / 'store'}",
        f"--config.init.start_from={paths['start']}",
        "--config.train.steps=3",
    ]
    assert main(["train", *config, f"--workdir={paths['run']}"]) == 0
    lines = tiny.read_lines(tmp_path / "run")
    assert lines[-1]["step"] == 3
    assert lines[-1]["loss"] < lines[1]["loss"]

    argv = [f"--source={paths['run']}", f"--target={paths['grown']}", "--operator=zero"]
    assert main(["grow", *argv, "--factor=2"]) == 0
    for name, source in (("out", "grown"), ("before", "run")):
        argv = ["--from=orbax", f"--source={paths[source]}", "--to=hf"]
        assert main(["convert", *argv, f"--target={tmp_path / name}"]) == 0
    capsys.readouterr()
    assert main(["inspect", paths["grown"], "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"]["model"]["architecture"] == "qwen3"
    assert report["params"]["layers/attention/q_norm"]["shape"] == [4, 8]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "qwen3"
    before, after = (logits_of(load_transformers(tmp_path / n), TOKENS) for n in ("before", "out"))
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"attention_bias": True}, "attention_bias is True"),
    ],
)
def test_refusals_are_one_line_and_exit_code_two(tmp_path, capsys, change, message):
    from transformers import Qwen3Config

    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(Qwen3Config().to_dict() | change))
    argv = ["--from=hf", f"--source={source}", "--to=orbax", f"--target={target}"]
    assert main(["convert", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
