"""The tasks without seqio against seqio's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.text.plain import open_plain_task
from data_pipelines.text.sources import CORPORA, EMBEDDED_SHAKESPEARE, tasks_of
from prts_jax.errors import UserError

TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"


def test_every_task_of_a_corpus_equals_seqios(tmp_path: Path, write_rows: Callable[..., Path]):
    from data_pipelines.text import tasks

    write_rows(tmp_path / "train/chunk1/example_train_0.jsonl.zst", [("text", "RedPajamaC4")])
    (tmp_path / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    registered = {*tasks.seqio.TaskRegistry.names(), *tasks.seqio.MixtureRegistry.names()}
    for corpus in CORPORA:
        assert tasks_of(corpus).keys() <= registered
        for name in tasks_of(corpus):
            for where in ((tmp_path, None), (tmp_path, TOKENIZER)):
                through_seqio = tasks.open_task(name, "train", *where)
                assert open_plain_task(name, "train", *where) == through_seqio
    assert open_plain_task("shakespeare", "train") == tasks.open_task("shakespeare", "train")


def test_other_tasks_need_seqio(tmp_path: Path):
    for name in ("slimpajama_recipes", "mine"):
        with pytest.raises(UserError, match=rf"no task '{name}' without seqio"):
            open_plain_task(name, "train", tmp_path, TOKENIZER)
    with pytest.raises(UserError, match="no text found"):
        open_plain_task("slimpajama", "train", tmp_path, TOKENIZER)
