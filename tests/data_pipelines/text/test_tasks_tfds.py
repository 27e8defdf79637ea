"""Tasks over data sets of TensorFlow Datasets, against SentencePiece on each row.

The data sets are written by TFDS itself; `slimpajama/` has the builder's own test.
"""

from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.build.cache import cache
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SLIMPAJAMA
from prts_jax.errors import UserError

TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"
SETS = list(SLIMPAJAMA.sets.values())
ROWS = [(f"row {number} ✓", number * 3 % 7) for number in range(20)]
EOS = 2


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SlimPajama of twenty rows in three files, as `tfds build` would lay it out."""
    from data_pipelines.text.tasks import tf, tfds

    folder = tmp_path_factory.mktemp("tfds")
    texts, labels = zip(*ROWS, strict=True)
    rows = {"text": list(texts), "redpajama_set_name": list(labels)}
    features = {
        "text": tfds.features.Text(),
        "redpajama_set_name": tfds.features.ClassLabel(names=SETS),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name="slimpajama",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)},
        data_dir=folder,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    return folder


def test_each_file_becomes_a_shard_and_each_label_a_source(data_dir: Path, tmp_path: Path):
    from data_pipelines.text import tasks

    task = tasks.open_task("slimpajama_tfds", "train", data_dir, TOKENIZER)
    assert len(task.files) == 3
    store = cache(task, tmp_path / "store", lambda line: None)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    documents = [([*processor.encode(text), EOS], label) for text, label in ROWS]
    read = store.read(0, store.tokens).tolist()
    assert read == [token for tokens, _ in documents for token in tokens]
    ids = [label for tokens, label in documents for _ in tokens]
    assert store.source_ids(0, store.tokens).tolist() == ids
    assert store.sources == tuple(SETS)


def test_a_missing_data_set_is_refused(data_dir: Path, tmp_path: Path):
    from data_pipelines.text import tasks

    with pytest.raises(UserError, match="no data set slimpajama:1.0.0: .*`tfds build`"):
        tasks.open_task("slimpajama_tfds", "train", tmp_path, TOKENIZER)
    with pytest.raises(UserError, match="no data set slimpajama:1.0.0: .*validation"):
        tasks.open_task("slimpajama_tfds", "validation", data_dir, TOKENIZER)
