"""Learning a growth map: what trains, what stays, what it costs, and that it can be repeated."""

import dataclasses
import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.checkpoint.matrices_files import matrices_file, read_matrices
from prts_jax.checkpoint.training_spans import training_spans
from prts_jax.cli.family_tree import draw
from prts_jax.config import to_dict
from prts_jax.errors import DivergedError, Interrupted
from prts_jax.growth import dense
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.model.counts import six_n_d_per_token, training_flops_per_token
from prts_jax.train import learn
from prts_jax.train.learn import make_learn_step, matrices_on_mesh
from prts_jax.train.optim import adamw
from prts_jax.train.state import fresh_state
from tests.train import tiny

STEPS = 20


@pytest.fixture(scope="module")
def wide_and_deep(base) -> dict:
    """Changes of the tiny run's config that grow the base by learned matrices, twice as deep."""
    model = dataclasses.replace(
        tiny.MODEL, layers=4, embed=40, mlp=64, heads=8, kv_heads=4, norm_eps=tiny.MODEL.norm_eps
    )
    return {
        "model": model,
        "init__grow_from": str(base.workdir),
        "init__growth__operator": "learned",
        "init__growth__learn_steps": STEPS,
        "train__steps": 1,
    }


@pytest.fixture(scope="module")
def learned_run(base, stores, wide_and_deep, tmp_path_factory) -> Path:
    """One step of a model grown by matrices that were learned before it."""
    from prts_jax.train.loop import train

    workdir = tmp_path_factory.mktemp("learned") / "run"
    paths = {"data__train": stores.train, "data__validation": stores.validation}
    train(tiny.run_config(**(paths | wide_and_deep)), str(workdir))
    return workdir


def test_learning_lowers_the_loss_on_held_out_text(run, tmp_path, learned_run, wide_and_deep):
    changes = wide_and_deep | {"init__growth__learn_steps": 0}
    before = run(tmp_path / "run", **changes)[0]["validation_loss"]
    after = tiny.read_lines(learned_run)[0]["validation_loss"]
    assert after < before - 0.01


def test_every_matrix_has_learned(learned_run):
    lineage = read_lineage(resolve(str(learned_run)))
    (matrices,) = lineage.matrices.values()
    growth_map = make_map(tiny.MODEL, lineage.model, "learned")
    for name, start in dense.initial(growth_map, declare(lineage.model)).items():
        assert (matrices.arrays[name] != start).all(), name


def test_tokens_position_and_flops_of_learning_are_booked(learned_run, base):
    before = read_lineage(resolve(str(base.workdir)))
    lines = tiny.read_lines(learned_run)
    target = read_lineage(resolve(str(learned_run))).model
    declarations = declare(target)
    tokens = STEPS * 8 * 16
    flops = tokens * training_flops_per_token(target, declarations, 16)
    flops += STEPS * dense.learning_flops(make_map(tiny.MODEL, target, "learned"), declarations)
    assert lines[0]["tokens"] == before.tokens + tokens
    assert lines[0]["position"] == before.position + tokens
    assert lines[0]["flops"] == before.flops + flops
    assert lines[0]["flops_6nd"] == before.flops_6nd + tokens * six_n_d_per_token(declarations)
    assert lines[0]["step"] == before.step
    learning = lines[0]["growth"]["learning"]
    assert (learning["steps"], learning["tokens"], learning["flops"]) == (STEPS, tokens, flops)
    assert learning["last_loss"] < learning["first_loss"]


def test_what_learning_took_counts_to_the_grown_stage(learned_run, base):
    path = resolve(str(learned_run))
    before, lineage = read_lineage(resolve(str(base.workdir))), read_lineage(path)
    first, second = training_spans(lineage)
    assert (first.tokens, first.flops) == (before.tokens, before.flops)
    assert second.tokens == (STEPS + 1) * 8 * 16
    assert f"learned for {STEPS} steps: 2,560 tokens" in draw(path, lineage)


def test_the_matrices_are_kept_by_digest_and_the_record_is_small(learned_run):
    path = resolve(str(learned_run))
    record = read_lineage(path).growth[-1]
    digest = record.map.matrices.digest
    assert read_matrices(matrices_file(path, digest)).digest == digest
    assert len(json.dumps(to_dict(record))) < 10_000


def test_stopped_while_it_learns_it_ends_at_once_and_learns_the_same_bits_again(
    run, tmp_path, learned_run, wide_and_deep, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(learn, "_refuse_divergence", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step 1 of learning"):
            run(tmp_path / "run", **wide_and_deep)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    run(tmp_path / "run", **wide_and_deep)
    stored = tiny.stored_params(learned_run)
    tiny.assert_same(tree.unflatten(tiny.stored_params(tmp_path / "run")), stored)


def test_a_file_of_matrices_grows_as_they_did_when_they_were_learned(
    run, tmp_path, learned_run, wide_and_deep
):
    path = resolve(str(learned_run))
    (digest,) = read_lineage(path).matrices
    given = wide_and_deep | {"init__growth__matrices": matrices_file(path, digest)}
    lines = run(tmp_path / "given", **given)
    learned = tiny.read_lines(learned_run)
    for key in ("validation_loss", "tokens", "flops", "flops_6nd"):
        assert lines[0][key] == learned[0][key], key
    assert lines[0]["position"] == learned[0]["position"] - STEPS * 8 * 16  # no data was read here
    booked = {"run": str(learned_run), **learned[0]["growth"]["learning"]}
    assert lines[0]["growth"]["learning"] == booked
    path = resolve(str(tmp_path / "given"))
    assert f"learned in {learned_run} for {STEPS} steps" in draw(path, read_lineage(path))
    assert read_matrices(matrices_file(path, digest)).learning == booked


def test_the_cost_of_matrices_is_booked_once_in_a_lineage(learned_run):
    lineage = read_lineage(resolve(str(learned_run)))
    record = lineage.growth[-1]
    (matrices,) = lineage.matrices.values()
    again = lineage.grown(dataclasses.replace(record.map, matrices=matrices), {})
    assert (again.tokens, again.flops) == (lineage.tokens, lineage.flops)
    assert again.growth[-1].learning == {"run": str(learned_run), "cost": "counted before"}
    elsewhere = dataclasses.replace(lineage, growth=())
    for _ in range(2):
        elsewhere = elsewhere.grown(dataclasses.replace(record.map, matrices=matrices), {})
    assert elsewhere.flops == lineage.flops + record.learning["flops"]


def test_a_finished_learning_is_resumed_from_not_repeated(run, tmp_path, wide_and_deep, capsys):
    run(tmp_path / "run", **wide_and_deep)
    said = "learning the growth map: step 20/20"
    assert said in capsys.readouterr().err
    lines = run(tmp_path / "run", **(wide_and_deep | {"train__steps": 3}))
    assert said not in capsys.readouterr().err
    assert [line["step"] for line in lines] == [6, 7, 8, 9]


def test_accumulated_micro_batches_learn_the_same(configure):
    target = dataclasses.replace(tiny.MODEL, layers=4)
    growth_map = make_map(tiny.MODEL, target, "learned")
    declarations = declare(target)
    rng = np.random.default_rng(0)
    source = {
        path: np.asarray(rng.normal(size=leaf.shape) * 0.1, np.float32)
        for path, leaf in declare(tiny.MODEL).items()
    }
    tokens = rng.integers(0, 64, (8, 17)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.ones((8, 16), np.float32),
    }
    learned = []
    for accumulation in (1, 4):
        config = configure(train__accumulation=accumulation)
        mesh = make_mesh(config.mesh)
        optimizer = adamw(config.optimizer)
        state = fresh_state(matrices_on_mesh(growth_map, declarations, mesh), optimizer, mesh)
        step = make_learn_step(
            config, growth_map, declarations, optimizer, param_shardings(mesh, declarations)
        )
        learned.append(jax.device_get(step(state, source, batch)))
    (one, loss), (four, same_loss) = learned
    np.testing.assert_allclose(loss, same_loss, rtol=1e-5)
    for name, array in one.optimizer[1].mu.items():
        np.testing.assert_allclose(array, four.optimizer[1].mu[name], rtol=1e-3, atol=1e-7)


def test_a_diverged_learning_says_so_and_writes_nothing(run, tmp_path, wide_and_deep):
    changes = wide_and_deep | {"init__growth__learn_rate": 1e30}
    with pytest.raises(
        DivergedError, match=r"has diverged; lower config\.init\.growth\.learn_rate"
    ):
        run(tmp_path / "run", **changes)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(base, stores, run_prts, tmp_path, wide_and_deep):
    """Every axis that the mesh splits widens, and the source's 2 key heads do not divide by 4."""
    flags = [*stores.flags()]
    for key, value in wide_and_deep.items():
        values = {key: value}
        if key == "model":
            values = {
                f"model__{name}": getattr(value, name)
                for name in ("layers", "embed", "mlp", "heads", "kv_heads")
            }
        flags += [f"--config.{name.replace('__', '.')}={v}" for name, v in values.items()]
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=4")
    run_prts("train", *flags, f"--workdir={tmp_path / 'one'}")
    run_prts("train", *flags, *mesh, f"--workdir={tmp_path / 'eight'}", devices=8)
    one, eight = (tiny.read_lines(tmp_path / name)[0] for name in ("one", "eight"))
    for losses in ("first_loss", "last_loss"):
        actual, expected = (line["growth"]["learning"][losses] for line in (eight, one))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, err_msg=losses)
    np.testing.assert_allclose(eight["validation_loss"], one["validation_loss"], rtol=1e-4)
    stored = [tiny.stored_params(tmp_path / name) for name in ("one", "eight")]
    for name, leaf in stored[0].items():
        np.testing.assert_allclose(stored[1][name], leaf, atol=5e-3, err_msg=name)
