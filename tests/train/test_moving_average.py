"""The moving average of the weights against NumPy, through resume, growth, conversion and eval."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from prts_jax import tree
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.checkpoint.restore import has_optimizer
from prts_jax.cli import convert, grow
from prts_jax.cli import eval as evaluate
from prts_jax.errors import UserError
from prts_jax.train import moving_average
from tests.train import tiny
from tests.train.one_step import make_batch, start

DECAY = 0.7
EMA = {"optimizer__ema": DECAY}
WIDER = {"embed": 64, "mlp": 96, "heads": 8, "kv_heads": 4}


def host(values) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(values).items()}


@pytest.fixture(scope="module")
def averaged(stores, tmp_path_factory) -> Path:
    """Six steps with a moving average and a checkpoint after each; tests only read it."""
    from prts_jax.train.loop import train

    workdir = tmp_path_factory.mktemp("averaged") / "run"
    paths = {"data__train": stores.train, "data__validation": stores.validation}
    kept = {"checkpoint__every_steps": 1, "checkpoint__keep": 10}
    train(tiny.run_config(**paths, **EMA, **kept), str(workdir))
    return workdir


def test_it_is_the_definitions_and_a_skipped_step_leaves_it(stores):
    config = tiny.run_config(**EMA)
    state, step = start(config)
    state = state._replace(ema=moving_average.begun(config, state.params))
    expected = host(state.params)
    for poisoned in (False, False, True, False):
        batch = make_batch()
        if poisoned:
            batch["loss_weights"] = batch["loss_weights"].at[0, 0].set(np.nan)
        state, _ = step(state, batch)
        if not poisoned:
            for path, leaf in host(state.params).items():
                expected[path] = DECAY * expected[path] + (1 - DECAY) * leaf
    for path, leaf in host(state.ema).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-9, err_msg=path)


def test_a_run_saves_it_evaluates_it_and_resumes_it(averaged, run, tmp_path):
    params = [tiny.stored_params(f"{averaged}@{step}") for step in range(2, 7)]
    expected = {
        path: leaf.astype(np.float64)
        for path, leaf in tiny.stored_params(f"{averaged}@1", "ema").items()
    }
    for after in params:
        for path, leaf in after.items():
            expected[path] = DECAY * expected[path] + (1 - DECAY) * leaf
    whole = tiny.stored_params(averaged, "ema")
    for path, leaf in whole.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-8, err_msg=path)
        assert (leaf != params[-1][path]).any(), path
    shutil.copytree(averaged, tmp_path / "run")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    (tmp_path / "run" / "DONE").unlink()
    resumed = run(tmp_path / "run", **EMA)
    assert tiny.curve(resumed) == tiny.curve(tiny.read_lines(averaged))
    assert {line["step"] for line in resumed if "validation_loss_ema" in line} == {0, 3, 6}
    tiny.assert_same(tiny.stored_params(tmp_path / "run", "ema"), whole)


@pytest.mark.parametrize(
    ("size", "flags"),
    [
        ({"layers": 4}, ["--operator=stack", "--factor=2", "--mode=reference"]),
        pytest.param(
            WIDER,
            ["--operator=split", "--widths=embed=64,mlp=96,heads=8,kv_heads=4"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["depth", "width"],
)
def test_it_grows_on_disk_as_on_the_mesh(averaged, run, tmp_path, size, flags):
    """The average of a function-preserving growth computes what the source's average does."""
    target = tmp_path / "grown"
    assert grow.main([f"--source={averaged}", f"--target={target}", *flags]) == 0
    deep = {f"model__{axis}": count for axis, count in size.items()} | EMA | {"train__steps": 1}
    grown = {"init__grow_from": str(averaged), "init__growth__operator": flags[0][11:]}
    on_mesh = run(tmp_path / "mesh", **deep, **grown)
    on_disk = run(tmp_path / "disk", **deep, init__start_from=str(target))
    losses = [lines[0]["validation_loss_ema"] for lines in (on_mesh, on_disk)]
    assert losses[0] == losses[1]
    if "embed" in size:
        before = tiny.read_lines(averaged)[-1]["validation_loss_ema"]
        assert losses[0] == pytest.approx(before, abs=1e-5)
    else:
        source = tiny.stored_params(averaged, "ema")["layers/mlp/up"]
        copied = tiny.stored_params(target, "ema")["layers/mlp/up"]
        np.testing.assert_array_equal(copied, np.concatenate([source, source]))
    tiny.assert_same(*(tiny.stored_params(tmp_path / name, "ema") for name in ("mesh", "disk")))


@pytest.mark.slow
def test_it_is_converted_and_evaluated_by_an_option(averaged, tmp_path, capsys):
    argv = ["--from=orbax", f"--source={averaged}", "--weights=ema", "--verify"]
    for kind in ("orbax", "hf"):
        assert convert.main([*argv, f"--to={kind}", f"--target={tmp_path / kind}"]) == 0
    assert "weights are the moving average" in (tmp_path / "hf" / "README.md").read_text()
    lineage = read_lineage(str(tmp_path / "orbax"))
    assert not has_optimizer(str(tmp_path / "orbax"), lineage)
    assert lineage.evaluation == {}  # that of the source is of its parameters
    tiny.assert_same(tiny.stored_params(tmp_path / "orbax"), tiny.stored_params(averaged, "ema"))
    capsys.readouterr()
    losses = []
    for checkpoint, weights in ((averaged, "ema"), (tmp_path / "orbax", "params")):
        flags = [f"--checkpoint={checkpoint}", f"--weights={weights}", "--dtype=float32"]
        assert evaluate.main([*flags, "--perplexity", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(
        tiny.read_lines(averaged)[-1]["validation_loss_ema"], rel=1e-6
    )


def test_without_it_nothing_is_saved_and_tools_refuse_by_name(base, run, tmp_path):
    path = Path(resolve(str(base.workdir)))
    assert not (path / "ema").exists()
    assert "ema_digests" not in json.loads((path / "lineage" / "lineage.json").read_text())
    argv = ["--from=orbax", "--to=orbax", f"--source={path}", f"--target={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="holds no moving average"):
        convert.main([*argv, "--weights=ema"])
    assert not (tmp_path / "out").exists()


def test_it_may_begin_in_the_middle_of_a_run(base, run, tmp_path):
    shutil.copytree(base.workdir, tmp_path / "run")
    with pytest.raises(UserError, match=r"config.optimizer.ema: was 0.0 .* is now 0.7"):
        run(tmp_path / "run", **EMA, train__steps=7)
    run(tmp_path / "run", ("optimizer.ema",), **EMA, train__steps=7)
    before, after = (tiny.stored_params(tmp_path / "run"), tiny.stored_params(base.workdir))
    for path, leaf in tiny.stored_params(tmp_path / "run", "ema").items():
        expected = DECAY * after[path].astype(np.float64) + (1 - DECAY) * before[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-8, err_msg=path)
