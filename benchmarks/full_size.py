"""Costs of a store of SlimPajama's size on a host: opening it, its memory, batches far into it.

    python benchmarks/full_size.py --folder=DIR

The store has 59,166 shards and 627 billion tokens, but one shard's files behind all their names
(hard links), whose tokens are a hole, so it takes 0.1 GB of DIR and says nothing of a disk.
"""

import argparse
import os
import resource
import shutil
import statistics
import time
from pathlib import Path

import numpy as np

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Encoded, Shard, write_index, write_shard
from data_pipelines.text.sources import SLIMPAJAMA

SHARDS, SHARD_TOKENS, SHARD_DOCUMENTS = 59_166, 10_600_000, 10_000
LENGTH, BATCH, ROWS = 2048, 1024, 64  # a host of sixteen


def write_store(folder: Path) -> None:
    """Writes the store, its sets one after the other in each shard."""
    sources = tuple(SLIMPAJAMA.sets.values())
    size = SHARD_TOKENS // SHARD_DOCUMENTS
    numbers = sorted(number % len(sources) for number in range(SHARD_DOCUMENTS))
    documents = (Encoded(np.zeros(size, np.int32), number) for number in numbers)
    built = write_shard(folder, "shard-00000", "0", 1, documents, 32_000, len(sources))
    os.truncate(folder / "shard-00000.tokens", 0)
    os.truncate(folder / "shard-00000.tokens", 2 * SHARD_TOKENS)
    entries = [Shard(**{**vars(built), "name": f"shard-{i:05d}"}) for i in range(SHARDS)]
    for entry in entries[1:]:
        for suffix in built.sha256:
            os.link(folder / f"{built.name}.{suffix}", folder / f"{entry.name}.{suffix}")
    names = [f"chunk{1 + i // 5917}/example_train_{i}.jsonl.zst" for i in range(SHARDS)]
    write_index(
        folder,
        identity={"task": "none", "split": "train", "tokenizer_sha256": "0", "inputs": names},
        vocab_size=32_000,
        eos_id=2,
        sources=sources,
        shards=entries,
        layout="by_set",
    )


def peak_megabytes() -> float:
    """Returns the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Prints the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where 0.1 GB may be written")
    folder = parser.parse_args().folder / "full_size"
    folder.mkdir()
    try:
        child = os.fork()  # what writing the store takes is not this process's
        if not child:
            write_store(folder)
            os._exit(0)
        os.waitpid(child, 0)
        before, begin = peak_megabytes(), time.perf_counter()
        store = TokenStore.open(folder)
        seconds = time.perf_counter() - begin
        print(f"{store.tokens:,} tokens: opened in {seconds:.1f} s, at {before:.0f} MB before")
        for block, apart in ((0, False), (65_536, False), (0, True)):
            batches = TrainBatches(
                store, ReadOrder(LENGTH, BATCH, seed=0, block=block, documents=apart)
            )
            for first in (0, 10**7):
                times = []
                for step in range(first, first + 20):
                    begin = time.perf_counter()
                    batches.rows(step * BATCH * LENGTH, 0, ROWS)
                    times.append((time.perf_counter() - begin) * 1e3)
                print(
                    f"block={block} documents={apart}: {ROWS} rows at step {first:,}: first "
                    f"{times[0]:.1f}, median {statistics.median(times):.1f} ms"
                )
        print(f"most memory {peak_megabytes():.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
