"""The same windows through seqio's cached tasks and through Grain, for `benchmarks/data.py`.

Each reader takes batches [batch, length + 1] int32 of endless shuffled windows, and returns how
many input tokens it dealt with. Grain is no dependency of this project: `pip install grain`.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Reader = Callable[[], int]


def seqio_cached(windows: np.ndarray, folder: Path, batch: int, turn: int) -> Reader:
    """Reads a cached seqio task, whose examples are already windows, through tf.data.

    Args:
      windows: int32 [n, length + 1].
      folder: where the cache is made.
      batch: windows of a batch.
      turn: batches of a call.
    """
    import seqio
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    name, shards = "windows_of_the_benchmark", 8
    cache = folder / name
    cache.mkdir(parents=True)
    for shard in range(shards):
        path = cache / f"train.tfrecord-{shard:05d}-of-{shards:05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for window in windows[shard::shards]:
                ids = tf.train.Feature(int64_list=tf.train.Int64List(value=window))
                example = tf.train.Example(features=tf.train.Features(feature={"targets": ids}))
                writer.write(example.SerializeToString())
    feature = {"dtype": "int32", "shape": [windows.shape[1]]}
    info = {
        "num_shards": shards,
        "features": {"targets": feature},
        "seqio_version": seqio.__version__,
    }
    (cache / "info.train.json").write_text(json.dumps(info))
    (cache / "stats.train.json").write_text(json.dumps({"examples": len(windows)}))
    (cache / "COMPLETED").touch()
    seqio.add_global_cache_dirs([str(folder)])
    task = seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"]),
        preprocessors=[seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False)},
    )
    data = task.get_dataset(
        None,
        "train",
        use_cached=True,
        shuffle=True,
        seed=0,
        num_epochs=None,
        try_in_mem_cache=False,
    )
    batches = data.batch(batch).prefetch(2).as_numpy_iterator()
    return _turns((example["targets"] for example in batches), turn)


def grain_over_memory_map(flat: Path, length: int, batch: int, turn: int) -> Reader:
    """Reads a memory map under Grain's global shuffle, with its reading threads.

    Args:
      flat: the tokens as uint16, one after the other.
      length: inputs of a window.
      batch: windows of a batch.
      turn: batches of a call.
    """
    import grain

    class Windows:
        """A random-access source of Grain's."""

        def __init__(self) -> None:
            self.tokens = np.memmap(flat, np.uint16, "r")

        def __len__(self) -> int:
            return (len(self.tokens) - 1) // length

        def __getitem__(self, index: int) -> np.ndarray:
            return self.tokens[index * length : (index + 1) * length + 1].astype(np.int32)

    data = grain.MapDataset.source(Windows()).seed(0).shuffle().repeat()
    return _turns(iter(data.to_iter_dataset().batch(batch)), turn)


def _turns(batches: Iterator[Any], turn: int) -> Reader:
    def read() -> int:
        tokens = 0
        for _ in range(turn):
            windows = next(batches)
            tokens += windows.shape[0] * (windows.shape[1] - 1)
        # Threads that read ahead are paid for by the turn that took what they replace.
        quiet = False
        while not quiet:
            before = time.process_time()
            time.sleep(0.02)
            quiet = time.process_time() - before < 0.002
        return tokens

    return read
