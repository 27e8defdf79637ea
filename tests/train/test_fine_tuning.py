"""Fine-tuning on instructions: the loss of the answers alone, and runs that begin with it."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.packed import PackedBatches, eval_batches
from data_pipelines.store.index import PADDING
from data_pipelines.store.several import open_stores
from data_pipelines.store.store import TokenStore
from prts_jax import tree
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.checkpoint.training_spans import training_spans
from prts_jax.cli import family_tree
from prts_jax.errors import UserError
from prts_jax.evaluate.loaded import load
from prts_jax.evaluate.perplexity import make_evaluator
from prts_jax.formats.convert import write_checkpoint
from prts_jax.formats.huggingface import open_model
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step
from tests.formats import foreign_models
from tests.instruction_data import TOKENIZER, examples_of, make_store, many, packed_order
from tests.train import tiny

LENGTH, ROWS = 48, 8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Instructions in the tokens of the stores that the tiny runs are trained on."""
    tokenizer = dataclasses.replace(TOKENIZER, sha256="0")
    return make_store(tmp_path_factory.mktemp("sft"), many(37), LENGTH, tokenizer)


class Theirs:
    """The model of transformers, and the loss that it has on each example alone."""

    def __init__(self, folder: Path, store: TokenStore):
        self.shape = foreign_models.shape()
        self.model = foreign_models.save_transformers(folder, self.shape)
        self.losses = [self.loss(tokens, answers) for tokens, answers in examples_of(store)]

    def loss(self, tokens: list[int], answers: list[bool]) -> tuple[float, int]:
        """Mean over the answers of one example, and how many tokens they have."""
        import torch

        labels = [
            token if counted else -100 for token, counted in zip(tokens, answers, strict=True)
        ]
        with torch.no_grad():
            actual = self.model(torch.tensor([tokens]), labels=torch.tensor([labels]))
        return float(actual.loss), sum(answers)

    def mean(self) -> float:
        """Over the tokens of all answers."""
        return sum(loss * count for loss, count in self.losses) / self.tokens()

    def tokens(self) -> int:
        return sum(count for _, count in self.losses)


@pytest.fixture(scope="module")
def theirs(packed: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return Theirs(tmp_path_factory.mktemp("hf") / "model", packed)


@pytest.fixture(scope="module")
def ours(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("imported")
    theirs.model.save_pretrained(folder / "hf")
    write_checkpoint(open_model(str(folder / "hf")), str(folder / "ours"))
    return load(str(folder / "ours"), "float32")


def test_an_evaluation_of_packed_rows_is_transformers_of_each_example_alone(
    packed: TokenStore, theirs: Theirs, ours: Any
):
    batches = eval_batches(packed, LENGTH, batch=3)
    evaluate = make_evaluator(ours.model, ours.compute, batches, ours.mesh)
    actual = evaluate(ours.params)
    assert actual.tokens == theirs.tokens()
    assert actual.loss == pytest.approx(theirs.mean(), rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_so_is_a_steps_loss_however_the_answers_lie_among_its_rows(
    packed: TokenStore, theirs: Theirs, ours: Any, accumulation: int
):
    rows = packed.tokens // (LENGTH + 1)
    batch_size = rows // accumulation * accumulation
    config = tiny.run_config(train__accumulation=accumulation, data__batch=batch_size)
    optimizer = make_optimizer(config)
    batches = PackedBatches(packed, packed_order(LENGTH, batch_size, seed=0))
    batch = {k: jnp.asarray(v) for k, v in batches.rows(0, 0, batch_size).items()}
    counts = np.asarray(batch["loss_weights"]).sum(1)
    assert len(set(counts.tolist())) > 3  # a mean of means would be another
    params = jax.tree.map(jnp.copy, ours.params)
    step = make_train_step(dataclasses.replace(config, model=ours.model), optimizer)
    _, metrics = step(fresh_state(params, optimizer, ours.mesh), batch)

    present = [row.tolist() for row in np.asarray(batch["tokens"])]
    expected = [
        loss
        for (tokens, _), loss in zip(examples_of(packed), theirs.losses, strict=True)
        if any(_holds(row, tokens) for row in present)
    ]
    total = sum(count for _, count in expected)
    assert float(metrics.loss_tokens) == counts.sum() == total
    mean = sum(loss * count for loss, count in expected) / total
    assert float(metrics.loss) == pytest.approx(mean, rel=1e-5)


def _holds(row: list[int], tokens: list[int]) -> bool:
    """Whether a row's inputs hold an example, whose last token may be a target alone."""
    inputs = tokens[:-1]
    return any(row[at : at + len(inputs)] == inputs for at in range(len(row)))


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def tune(run: Run, base: Any, packed: TokenStore) -> Run:
    """`tune(workdir, **changes)` fine-tunes the tiny base run on the packed store."""

    def tune_here(workdir: Path, **changes: Any) -> list[dict[str, Any]]:
        settings: dict[str, Any] = {
            "init__start_from": str(base.workdir),
            "data__train": packed.directory,
            "data__validation": packed.directory,
            "data__instructions": True,
            "data__documents": True,
            "data__overlap": False,
            "data__length": LENGTH,
            "train__steps": 4,
            "evaluation__every_steps": 2,
        }
        return run(workdir, **(settings | changes))

    return tune_here


def test_a_run_goes_on_from_what_was_pretrained_and_counts_what_it_reads(
    tune: Run, base: Any, packed: TokenStore, tmp_path: Path
):
    lines = tune(tmp_path / "sft")
    before = read_lineage(resolve(str(base.workdir)))
    assert lines[0]["step"] == before.step
    assert lines[-1]["validation_loss"] < lines[0]["validation_loss"]
    batches = PackedBatches(packed, packed_order(LENGTH, ROWS, seed=0))
    for number, line in enumerate(lines[1:]):
        position = number * ROWS * LENGTH
        weights = batches.rows(position, 0, ROWS)["loss_weights"]
        assert line["loss_tokens"] == weights.sum()
        assert line["position"] == position + ROWS * LENGTH
        assert line["tokens"] - lines[number]["tokens"] == batches.tokens(position)
    assert f"loss/{PADDING}" not in lines[-1]
    per_token = {
        (after["flops"] - line["flops"]) / (after["tokens"] - line["tokens"])
        for line, after in itertools.pairwise(lines)
    }
    assert len(per_token) == 1  # padding costs nothing in either


def test_its_lineage_has_a_stage_of_its_own(tune: Run, base: Any, tmp_path: Path):
    tune(tmp_path / "sft", train__steps=1)
    path = resolve(str(tmp_path / "sft"))
    lineage, before = read_lineage(path), read_lineage(resolve(str(base.workdir)))
    pretrained, fine_tuned = training_spans(lineage)
    assert (pretrained.last_step, fine_tuned.first_step) == (before.step, before.step)
    assert (pretrained.fine_tuning, fine_tuned.fine_tuning) == (False, True)
    assert pretrained.tokens == before.tokens
    assert pretrained.evaluation == before.evaluation
    assert fine_tuned.evaluation == lineage.evaluation != before.evaluation
    assert [change.key for change in fine_tuned.changes] == ["data.store"]
    assert "├─ fine-tuned on instructions" in family_tree.draw(path, lineage)


def test_a_run_that_stops_goes_on_bit_for_bit(tune: Run, tmp_path: Path):
    whole = tune(tmp_path / "whole")
    tune(tmp_path / "parts", train__steps=2)
    assert tiny.curve(tune(tmp_path / "parts")) == tiny.curve(whole)
    tiny.assert_same(
        tree.unflatten(tiny.stored_params(tmp_path / "parts")),
        tiny.stored_params(tmp_path / "whole"),
    )


def test_a_run_on_two_packed_stores_takes_their_shares_also_after_a_stop(
    tune: Run, packed: TokenStore, tmp_path: Path
):
    tokenizer = dataclasses.replace(TOKENIZER, sha256="0")
    other = make_store(tmp_path / "other", many(20, seed=3), LENGTH, tokenizer)
    for name, store in {"one": packed, "two": other}.items():
        (tmp_path / name).symlink_to(store.directory)
    two = f"{tmp_path}/one,0.75;{tmp_path}/two,0.25"
    tune(tmp_path / "run", data__train=two, train__steps=2)
    lines = tune(tmp_path / "run", data__train=two)

    batches = train_batches(open_stores(two), packed_order(LENGTH, ROWS))
    for number, (line, after) in enumerate(itertools.pairwise(lines)):
        consumed = np.arange(number * ROWS, (number + 1) * ROWS)
        starts = batches.starts(consumed)
        read = [store.read(at, LENGTH).tolist() for store, at in starts]
        assert batches.take(consumed)["tokens"].tolist() == read
        answers = [store.read_answers([(at + 1, LENGTH)])[0] for store, at in starts]
        assert after["loss_tokens"] == np.sum(answers)
        assert after["tokens"] - line["tokens"] == batches.inputs(consumed)
    assert {"loss/one/instructions", "loss/two/instructions"} <= set().union(*lines)


def test_stores_that_do_not_fit_are_refused(tune: Run, stores: Any, packed, tmp_path: Path):
    other = make_store(tmp_path, many(37), LENGTH)
    with pytest.raises(
        UserError, match=r"another tokenizer .* was trained with .* --allow_change=data\.store"
    ):
        tune(tmp_path / "a", data__train=other.directory, data__validation="")
    with pytest.raises(UserError, match="does not mark answers"):
        tune(tmp_path / "b", data__train=stores.train)
    with pytest.raises(UserError, match="does not mark answers"):
        tune(tmp_path / "c", data__validation=stores.validation)
    with pytest.raises(UserError, match="holds packed instructions"):
        tune(tmp_path / "d", data__instructions=False)
    for name in "abcd":
        assert not (tmp_path / name / "metrics.jsonl").exists()


@pytest.mark.slow
def test_eight_devices_take_the_same_mean(run_prts, base: Any, packed: TokenStore, tmp_path: Path):
    """Rows have different numbers of answer tokens, and so have the devices."""
    command = (
        "train",
        "--config=tests/train/tiny.py",
        f"--config.init.start_from={base.workdir}",
        f"--config.data.train={packed.directory}",
        f"--config.data.validation={packed.directory}",
        "--config.data.instructions=True",
        "--config.data.documents=True",
        "--config.data.overlap=False",
        f"--config.data.length={LENGTH}",
        "--config.train.steps=3",
    )
    run_prts(*command, f"--workdir={tmp_path / 'one'}")
    run_prts(*command, f"--workdir={tmp_path / 'eight'}", "--config.mesh.fsdp=8", devices=8)
    one, eight = (tiny.read_lines(tmp_path / name) for name in ("one", "eight"))
    for line, other in zip(one, eight, strict=True):
        for key in ("tokens", "flops", "position", "loss_tokens"):
            assert line.get(key) == other.get(key)
        for key in {"loss", "validation_loss", "gradient_norm"} & line.keys():
            assert other[key] == pytest.approx(line[key], rel=3e-6)
