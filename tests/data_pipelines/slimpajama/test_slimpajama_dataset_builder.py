"""`tfds build` on a small tree, and its data set through seqio into a store."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.build.cache import cache
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SLIMPAJAMA
from prts_jax.errors import UserError

pytestmark = pytest.mark.beam
ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"
SETS = list(SLIMPAJAMA.sets.values())
EOS = 2


def test_a_built_data_set_holds_every_row_and_caches_file_by_file(
    tmp_path: Path, write_rows: Callable[..., Path]
):
    pytest.importorskip("apache_beam", reason="runs in the environment of `make test-beam`")
    from data_pipelines.text import tasks

    rows = [(f"row {number} ✓\n", SETS[number % 7]) for number in range(60)]
    for number in range(3):
        part = rows[number::3]
        write_rows(tmp_path / f"sp/train/chunk{number}/example_train_0.jsonl.zst", part)
    held_out = tmp_path / "sp/validation/chunk1/example_holdout_0.jsonl.zst"
    write_rows(held_out, [("held out", SETS[2])])
    done = subprocess.run(
        [
            Path(sys.executable).with_name("tfds"),
            "build",
            "data_pipelines/slimpajama",
            f"--manual_dir={tmp_path}/sp",
            f"--data_dir={tmp_path}/tfds",
            "--num_shards=3",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    task = tasks.open_task("slimpajama_tfds", "train", tmp_path / "tfds", TOKENIZER)
    assert len(task.files) == 3
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    documents = [list(task.documents(index)) for index in range(3)]
    actual = Counter(
        (tuple(row.tokens.tolist()), SETS[row.source]) for shard in documents for row in shard
    )
    wanted = Counter(((*processor.encode(text), EOS), set_name) for text, set_name in rows)
    assert actual == wanted
    store = cache(task, tmp_path / "store", lambda line: None)
    in_order = [token for shard in documents for row in shard for token in row.tokens]
    assert store.read(0, store.tokens).tolist() == in_order
    assert store.sources == tuple(SETS)
    validation = tasks.open_task("slimpajama_tfds", "validation", tmp_path / "tfds", TOKENIZER)
    [row] = validation.documents(0)
    assert (row.source, row.text_bytes) == (2, len("held out"))
    with pytest.raises(UserError, match="no data set slimpajama:1.0.0: .*`tfds build`"):
        tasks.open_task("slimpajama_tfds", "train", tmp_path / "none", TOKENIZER)
