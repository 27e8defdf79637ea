"""Whole runs in this process: what they leave, how they go on, what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax.checkpoint.layout import complete_steps, read_lineage, resolve
from prts_jax.config import to_dict
from prts_jax.errors import DivergedError, UserError
from prts_jax.model.architecture import declare
from prts_jax.model.counts import training_flops_per_token
from prts_jax.train.batches import training_batches
from prts_jax.train.loop import train
from tests.train import tiny
from tests.train.tiny import assert_same, curve, read_lines, stored_params

STEP_TOKENS = 8 * 16


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def flops_per_step(model) -> int:
    return STEP_TOKENS * training_flops_per_token(model, declare(model), 16)


def steps(workdir) -> list[int]:
    return complete_steps(str(workdir / "checkpoints"))


def validated(lines) -> list[int]:
    return [line["step"] for line in lines if "validation_loss" in line]


def test_a_run_leaves_metrics_checkpoints_its_config_and_done(base):
    lines = read_lines(base.workdir)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in lines] == [step * STEP_TOKENS for step in range(7)]
    assert [line["flops"] for line in lines] == [
        step * flops_per_step(tiny.MODEL) for step in range(7)
    ]
    assert all(line["loss"] > 0 and line["gradient_norm"] > 0 for line in lines[1:])
    assert validated(lines) == [0, 3, 6]
    assert lines[-1]["validation_loss"] < lines[0]["validation_loss"]
    assert {f"validation_loss/{name}" for name in tiny.SOURCES} <= lines[-1].keys()
    assert steps(base.workdir) == [4, 6]  # keep=2
    assert json.loads((base.workdir / "config.json").read_text()) == to_dict(base.config)
    assert json.loads((base.workdir / "DONE").read_text()) == {"step": 6, "tokens": 6 * STEP_TOKENS}


def test_a_checkpoint_knows_its_last_evaluation(base):
    lineage = read_lineage(resolve(str(base.workdir)))
    last = read_lines(base.workdir)[-1]
    assert lineage.evaluation["step"] == last["step"] == lineage.step
    assert lineage.evaluation.items() <= last.items()
    assert "validation_loss" in lineage.evaluation


def test_a_finished_run_does_nothing_more(base, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in base.workdir.rglob("*") if path.is_file()}
    run(base.workdir)
    assert "is finished (step 6); nothing to do" in capsys.readouterr().err
    del before[base.workdir / ".lock"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_made_longer_goes_on_as_if_it_had_always_been_so_long(base, run, tmp_path):
    run(tmp_path, train__steps=3)
    assert (tmp_path / "DONE").exists()
    lines = run(tmp_path)
    assert curve(lines) == curve(read_lines(base.workdir))
    assert_same(stored_params(tmp_path), stored_params(base.workdir))
    assert json.loads((tmp_path / "DONE").read_text())["step"] == 6


@pytest.mark.parametrize("stop", [4, 6])
def test_an_evaluation_is_not_skipped_where_a_run_resumes(run, tmp_path, stop):
    """Step 4 was saved when no evaluation was due there; now it is, by the stop or the interval."""
    run(tmp_path / "resumed", train__steps=5, evaluation__every_steps=0)
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "5")  # as if it had been killed there
    (tmp_path / "resumed" / "DONE").unlink()
    lines = run(tmp_path / "resumed", train__steps=stop, evaluation__every_steps=4)
    whole = run(tmp_path / "whole", train__steps=stop, evaluation__every_steps=4)
    assert validated(lines) == sorted({0, 4, stop})
    assert curve(lines) == curve(whole)
    lineage = read_lineage(resolve(str(tmp_path / "resumed")))
    assert lineage.evaluation.get("step") == (6 if stop == 6 else 0)  # a saved step stays as it is


@pytest.mark.slow
def test_a_lost_done_is_written_again(base, run, tmp_path):
    run(tmp_path, train__steps=2, evaluation__every_steps=0)
    (tmp_path / "DONE").unlink()
    before = read_lines(tmp_path)
    assert run(tmp_path, train__steps=2, evaluation__every_steps=0) == before
    assert (tmp_path / "DONE").exists()


def test_newest_checkpoints_are_kept_and_multiples_for_ever(run, tmp_path):
    run(
        tmp_path,
        train__steps=9,
        checkpoint__every_steps=1,
        checkpoint__keep=2,
        checkpoint__keep_every_steps=3,
        evaluation__every_steps=0,
    )
    assert steps(tmp_path) == [3, 6, 8, 9]


@pytest.mark.slow
def test_without_validation_nothing_is_validated(run, tmp_path):
    lines = run(tmp_path, train__steps=2, data__validation="")
    assert validated(lines) == []
    assert [line["step"] for line in lines] == [0, 1, 2]


def test_a_line_has_the_mean_losses_since_the_last_one(base, run, tmp_path):
    lines = run(tmp_path, logging__every_steps=4, checkpoint__every_steps=6)
    assert [line["step"] for line in lines] == [0, 3, 4, 6]  # 3 and 6 are evaluated
    single = {line["step"]: line for line in read_lines(base.workdir)[1:]}
    data = base.config.data
    batches = TrainBatches(
        TokenStore.open(data.train), ReadOrder(data.length, data.batch, data.seed)
    )
    sources = {s: batches.rows((s - 1) * STEP_TOKENS, 0, 8)["source_ids"] for s in single}
    for line, part in zip(lines[1:], ([1, 2, 3], [4], [5, 6]), strict=True):
        assert line["loss"] == np.mean([single[step]["loss"] for step in part])
        for number, name in enumerate(tiny.SOURCES):
            losses = [single[step][f"loss/{name}"] for step in part]
            tokens = [(sources[step] == number).sum() for step in part]
            assert line[f"loss/{name}"] == pytest.approx(np.average(losses, weights=tokens))


def test_a_source_without_tokens_has_no_loss(run, tmp_path):
    store = tiny.write_store(tmp_path / "store", documents=[(np.arange(300) % 64, 0)])
    lines = run(tmp_path / "run", train__steps=1, data__train=str(store.directory))
    assert [key for key in lines[1] if key.startswith("loss/")] == ["loss/prose"]
    assert lines[1]["loss/prose"] == pytest.approx(lines[1]["loss"], rel=1e-6)


def test_a_run_that_diverges_stops_with_the_step_and_saves_nothing_of_it(run, tmp_path):
    changes = {"schedule__peak": 1e38, "schedule__warmup_steps": 0, "train__max_skipped": 2}
    with pytest.raises(DivergedError, match=r"nan at step \d: training has diverged \(3"):
        run(tmp_path, **changes, checkpoint__every_steps=1)
    lines = read_lines(tmp_path)
    assert [line.get("skipped", 0) for line in lines][-2:] == [1, 1]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert not (tmp_path / "DONE").exists()
    last = read_lineage(resolve(str(tmp_path)))
    assert last.step <= lines[-1]["step"]
    assert all(np.isfinite(leaf).all() for leaf in stored_params(tmp_path).values())


# Growth


@pytest.fixture
def grown(base, shared, run) -> Path:
    """Three times as deep as the base, trained for four steps; made once."""
    workdir = shared / "grown"
    if not (workdir / "DONE").exists():
        run(workdir, model=tiny.deeper(6), init__grow_from=str(base.workdir), train__steps=4)
    return workdir


def test_a_grown_run_goes_on_counting_steps_tokens_and_flops(base, grown):
    lines = read_lines(grown)
    own = flops_per_step(tiny.deeper(6))
    before = 6 * flops_per_step(tiny.MODEL)
    assert [line["step"] for line in lines] == [6, 7, 8, 9, 10]
    assert [line["stage_step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["tokens"] for line in lines] == [step * STEP_TOKENS for step in range(6, 11)]
    assert [line["flops"] for line in lines] == [before + step * own for step in range(5)]
    assert [line["position"] for line in lines] == [step * STEP_TOKENS for step in range(6, 11)]
    assert lines[0]["growth"]["map"]["operator"] == "stack"
    assert all("growth" not in line for line in lines[1:])
    assert [line["learning_rate"] for line in lines[1:]] == [
        line["learning_rate"] for line in read_lines(base.workdir)[1:5]
    ]


def test_a_grown_run_reads_the_batches_that_the_base_would_have_read(base, shared, run):
    """One more step of the base and the first of the grown run see the same tokens: grown by one,
    the loss of that step is the same."""
    longer = run(shared / "longer", train__steps=7, evaluation__every_steps=0)
    same = run(
        shared / "once",
        init__grow_from=str(base.workdir),
        init__growth__factor=1,
        train__steps=1,
        evaluation__every_steps=0,
    )
    assert longer[7]["step"] == same[1]["step"] == 7
    assert same[1]["loss"] == longer[7]["loss"]


def test_in_blocks_a_grown_run_of_another_length_and_batch_reads_on_at_the_next_token(
    run, configure, tmp_path, monkeypatch
):
    """Both runs together read what one reader of whole blocks reads."""
    read: dict[int, np.ndarray] = {}
    rows = TrainBatches.rows

    def remembering(batches, position, start, stop):
        batch = rows(batches, position, start, stop)
        read[position + start * batches.order.length] = batch["tokens"].reshape(-1)
        return batch

    monkeypatch.setattr(TrainBatches, "rows", remembering)
    quick = {"data__block": 64, "data__pieces": 1, "data__strata": 1}
    quick |= {"data__validation": "", "model__layers": 1}
    run(tmp_path / "base", train__steps=3, **quick)
    lines = run(
        tmp_path / "grown",
        init__grow_from=str(tmp_path / "base"),
        train__steps=2,
        **quick | {"data__length": 32, "data__batch": 6, "model__layers": 2},
    )
    monkeypatch.undo()
    assert [line["position"] for line in lines] == [384, 384 + 192, 384 + 2 * 192]
    actual = np.concatenate([read[position] for position in sorted(read)])
    blocks = TrainBatches(
        TokenStore.open(configure().data.train), ReadOrder(64, 12, seed=0, block=64)
    )
    assert actual.tolist() == blocks.rows(0, 0, 12)["tokens"].reshape(-1).tolist()


@pytest.mark.slow
def test_without_blocks_another_length_begins_an_epoch_and_the_run_says_so(
    run, base, tmp_path, capsys
):
    lines = run(tmp_path, init__grow_from=str(base.workdir), train__steps=1, data__length=32)
    assert lines[0]["position"] == 3999 // 32 * 32
    assert "data.length changed, so data start epoch 2 in a new order" in capsys.readouterr().err


AS_IF_NOT_GROWN = {
    "init__growth__factor": 1,
    "init__growth__optimizer": "copy",
    "schedule__after_growth": "keep",
    "schedule__kind": "cosine",
    "schedule__decay_end": 12,
}
"""Growth that adds nothing and forgets nothing."""


@pytest.mark.slow
def test_growth_that_adds_and_forgets_nothing_is_the_run_going_on(shared, run):
    """Bit for bit: losses, learning rates, parameters; also when it is stopped and resumed."""
    cosine = {key: AS_IF_NOT_GROWN[key] for key in ("schedule__kind", "schedule__decay_end")}
    whole = run(shared / "whole", train__steps=10, checkpoint__keep_every_steps=6, **cosine)
    grown = {"init__grow_from": f"{shared / 'whole'}@6", **AS_IF_NOT_GROWN}
    run(shared / "grown_by_nothing", train__steps=2, **grown)
    lines = run(shared / "grown_by_nothing", train__steps=4, **grown)
    for ours, theirs in zip(lines[1:], whole[7:], strict=True):
        for key in ("step", "position", "tokens", "flops", "loss", "learning_rate"):
            assert ours[key] == theirs[key], key
    assert_same(stored_params(shared / "grown_by_nothing"), stored_params(shared / "whole"))


def test_a_batch_that_changes_at_growth_leaves_no_token_out(base, shared, run):
    """Positions count tokens: two steps of half the batch read what one step would have read."""
    lines = run(
        shared / "halved",
        init__grow_from=str(base.workdir),
        init__growth__factor=1,
        data__batch=4,
        train__steps=2,
        schedule__peak=0.0,
        evaluation__every_steps=0,
    )
    assert [line["position"] for line in lines] == [768, 768 + 64, 768 + 128]
    whole = run(
        shared / "not_halved",
        init__grow_from=str(base.workdir),
        init__growth__factor=1,
        train__steps=1,
        schedule__peak=0.0,
        evaluation__every_steps=0,
    )
    halves = (lines[1]["loss"] + lines[2]["loss"]) / 2
    assert halves == pytest.approx(whole[1]["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_grown_model_grows_again(grown, run, tmp_path):
    lines = run(tmp_path, model=tiny.deeper(12), init__grow_from=f"{grown}@10", train__steps=1)
    lineage = read_lineage(resolve(str(tmp_path)))
    assert [record.at_step for record in lineage.growth] == [6, 10]
    assert lines[0]["growth"]["at_step"] == 10
    assert lines[-1]["flops"] == (
        6 * flops_per_step(tiny.MODEL)
        + 4 * flops_per_step(tiny.deeper(6))
        + flops_per_step(tiny.deeper(12))
    )


@pytest.mark.slow
def test_a_grown_run_that_is_started_again_resumes_itself(base, run, grown, tmp_path):
    options = {"model": tiny.deeper(6), "init__grow_from": str(base.workdir)}
    run(tmp_path, **options, train__steps=2)
    lines = run(tmp_path, **options, train__steps=4)
    expected = curve(read_lines(grown))
    assert [line["loss"] for line in lines[1:]] == [line["loss"] for line in expected[1:]]
    assert_same(stored_params(tmp_path), stored_params(grown))


def test_starting_from_a_grown_run_is_no_growth(grown, run, tmp_path):
    lines = run(tmp_path, model=tiny.deeper(6), init__start_from=str(grown), train__steps=1)
    assert "growth" not in lines[0]
    assert [line["step"] for line in lines] == [10, 11]


# Refusals


def other_vocabulary(tmp_path) -> str:
    return str(tiny.write_store(tmp_path / "store", 400, vocab=65).directory)


@pytest.mark.parametrize("key", ["data__train", "data__validation"])
def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(run, tmp_path, key):
    with pytest.raises(UserError, match=r"config\.model\.vocab: 64 is less than the 65 entries"):
        run(tmp_path / "run", **{key: other_vocabulary(tmp_path)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": ""}, r"config\.data\.train: is empty"),
        ({"data__train": "/nowhere"}, "no finished token store: /nowhere"),
        ({"data__validation": "/nowhere"}, "no finished token store: /nowhere"),
        ({"data__length": 5000}, "smaller than one window"),
        ({"mesh__fsdp": 2}, r"config\.mesh: .*does not fill 1 devices"),
        ({"init__grow_from": "/nowhere"}, "/nowhere: does not exist"),
        ({"init__start_from": "/nowhere"}, "/nowhere: does not exist"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refused_run_leaves_nothing_in_the_way_of_the_mended_one(run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **changes)
    assert steps(tmp_path) == []
    assert not [path for path in tmp_path.iterdir() if path.name not in (".lock", "checkpoints")]
    # The corrected command finds a workdir that is as good as new.
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_checkpoint_is_no_workdir(tmp_path, configure):
    (tmp_path / "lineage").mkdir()
    (tmp_path / "lineage" / "lineage.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a checkpoint; name a new directory"):
        train(configure(), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["lineage"]


def test_a_batch_that_does_not_divide_is_refused_with_a_number_that_does(configure):
    config = configure(train__accumulation=2)
    with pytest.raises(UserError, match=r"config\.data\.batch: 8 .* make it a multiple of 16"):
        training_batches(config, batch_parts=8)
