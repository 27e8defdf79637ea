"""From text to a grown model that was taught to answer, through the public commands."""

import json
from pathlib import Path

import pytest

from prts_jax import cli
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.cli import config_flags
from prts_jax.errors import UserError
from tests.instruction_data import make_store, many, write_lines
from tests.train.tiny import read_lines


def test_the_config_takes_its_model_and_its_steps_from_the_checkpoint_and_the_stores(
    base, tmp_path: Path
):
    store = make_store(tmp_path, many(37), length=48)
    (tmp_path / "stores").mkdir()
    (tmp_path / "store").rename(tmp_path / "stores/train")
    rows = store.tokens // 49
    spec = f"--config=configs/sft.py:{base.workdir},{tmp_path / 'stores'}"
    actual = config_flags.load([f"{spec},5", "--config.data.batch=4"])
    assert actual.model == read_lineage(resolve(str(base.workdir))).model
    assert (actual.data.instructions, actual.data.length, actual.data.batch) == (True, 48, 4)
    assert actual.data.validation == ""
    assert actual.train.steps == actual.schedule.decay_end == -(-5 * rows // 4)
    assert config_flags.load([spec]).train.steps == -(-3 * rows // 16)


@pytest.mark.parametrize("argument", ["", ":x", ":a,b,c", ":a,b,2,3", ":,stores"])
def test_an_argument_that_is_none_is_refused(argument: str):
    with pytest.raises(UserError, match="give CHECKPOINT,STORES"):
        config_flags.load([f"--config=configs/sft.py{argument}"])


def test_plain_stores_are_refused(base, stores):
    folder = Path(stores.train).parent
    with pytest.raises(UserError, match="does not say what is an answer"):
        config_flags.load([f"--config=configs/sft.py:{base.workdir},{folder}"])


SPEECHES = [
    {"instruction": f"Greet {name}.", "output": f"Hail, {name}!"}
    for name in ("Brutus", "Hamlet", "Juliet", "Lear", "Macbeth", "Othello", "Portia", "Romeo")
]


@pytest.mark.slow
def test_prepare_pretrain_grow_tune_and_ask(tmp_path: Path, capsys):
    def prts(*arguments: str) -> str:
        assert cli.main(arguments) == 0
        return capsys.readouterr().out

    tokenizer = "data_pipelines/shakespeare/tokenizer.model"
    (tmp_path / "text").mkdir()
    (tmp_path / "text/play.txt").write_text("To be, or not to be, that is the question. " * 200)
    cached = f"--output={tmp_path / 'stores'}"
    flags = ("--format=text", "--split=train", f"--tokenizer={tokenizer}", cached)
    prts("data", "cache", f"--input={tmp_path / 'text'}", *flags)
    prts(
        "train",
        "--config=tests/train/tiny.py",
        "--config.model.vocab=1024",
        f"--config.data.train={tmp_path / 'stores/train'}",
        f"--workdir={tmp_path / 'base'}",
    )
    grown = tmp_path / "grown"
    growth = ("--operator=stack", "--factor=2")
    prts("grow", f"--source={tmp_path / 'base'}", f"--target={grown}", *growth)

    write_lines(tmp_path / "speeches.jsonl", SPEECHES * 4)
    prepared = prts(
        "data",
        "instructions",
        f"--input={tmp_path / 'speeches.jsonl'}",
        f"--tokenizer={tokenizer}",
        f"--output={tmp_path / 'sft'}",
        "--length=64",
    )
    assert f"{tmp_path / 'sft/train'}: 32 examples in " in prepared
    prts(
        "train",
        f"--config=configs/sft.py:{grown},{tmp_path / 'sft'},40",
        f"--config.data.validation={tmp_path / 'sft/train'}",
        "--config.data.batch=8",
        "--config.compute.dtype=float32",
        "--config.schedule.peak=1e-2",
        f"--workdir={tmp_path / 'tuned'}",
    )
    lines = read_lines(tmp_path / "tuned")
    assert lines[-1]["validation_loss"] < 0.2 < 3 < lines[0]["validation_loss"]

    asked = ("--instruction=Greet Hamlet.", "--dtype=float32", "--tokens=20", "--json")
    answer = json.loads(prts("generate", f"--checkpoint={tmp_path / 'tuned'}", *asked))
    assert answer["text"] == "Hail, Hamlet!"  # and it ended by itself
    score = ("--perplexity", "--json", "--dtype=float32")
    measured = json.loads(prts("eval", f"--checkpoint={tmp_path / 'tuned'}", *score))
    assert measured["loss"] == pytest.approx(lines[-1]["validation_loss"], rel=1e-4)

    tree = prts("inspect", str(tmp_path / "tuned"), "--lineage")
    assert tree.index("● 2 layers") < tree.index("├─ stack") < tree.index("├─ fine-tuned")
    assert tree.count("● 4 layers") == 2
