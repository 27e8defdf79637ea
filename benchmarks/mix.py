"""Mix of sources in a batch, and reading speed, of the orders in which a store can be read.

    python benchmarks/mix.py [FOLDER]

The first table counts the windows of 400 batches, far apart, by source in a store with the counts
of SlimPajama in `--layout=by_set`, of which only the index is needed. The second reads a store of
random tokens in FOLDER (a temporary one by default, 0.8 GB).
"""

import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.files import open_files
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Encoded, write_index, write_shard
from prts_jax.paths import as_path

SHARES = {  # of SlimPajama's tokens, in the order of the table of its paper
    "CommonCrawl": 0.522,
    "C4": 0.267,
    "GitHub": 0.052,
    "Book": 0.042,
    "ArXiv": 0.046,
    "Wikipedia": 0.038,
    "StackExchange": 0.033,
}
SHARDS, SHARD_TOKENS = 4000, 10_600_000  # SlimPajama has 59,166 shards
BATCH_TOKENS = 1 << 21
BATCHES = 400
APART = 37  # batches between those counted: neighbours share their open blocks
LENGTHS = (512, 1024, 2048, 4096)
ORDERS = {
    "single windows": {},
    "blocks of 65,536 in a row": {"block": 65536, "pieces": 1},
    "blocks of 65,536 interleaved": {"block": 65536, "pieces": 32},
    "blocks of 65,536, 32 strata": {"block": 65536, "pieces": 32, "strata": 32},
}


def main() -> None:
    """Prints both tables."""
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ",
        end="",
    )
    print(f"NumPy {np.__version__}; batches of {BATCH_TOKENS:,} tokens\n")
    for length in LENGTHS:
        show_mix(length)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        show_speed(folder)


def slimpajama() -> TokenStore:
    """Returns a store without files, whose index has SlimPajama's shares in each shard."""
    shares = np.array(list(SHARES.values()))
    per_source = np.random.default_rng(0).dirichlet(shares * 2000, SHARDS) * SHARD_TOKENS
    shards = [
        {"name": f"shard-{n:05d}", "documents": 10_000, "tokens_per_source": row}
        for n, row in enumerate(per_source.astype(int).tolist())
    ]
    index: dict[str, Any] = {
        "fingerprint": "0",
        "vocab_size": 32000,
        "eos_id": 2,
        "documents": 10_000 * SHARDS,
        "sources": list(SHARES),
        "layout": "by_set",
        "tokenizer_sha256": "0",
        "shards": shards,
    }
    return TokenStore("nowhere", index, open_files("nowhere"))


def show_mix(length: int) -> None:
    """Prints the share of some sources in a batch: mean ± standard deviation, in points."""
    store, rows = slimpajama(), BATCH_TOKENS // length
    print(f"length {length:,}: share of a batch's windows, mean ± standard deviation over batches")
    for name, options in ORDERS.items():
        batches = train_batches(store, ReadOrder(length, rows, seed=0, **options))
        counts = np.zeros((BATCHES, len(SHARES)))
        first = 2_000 * rows  # anywhere in the epoch
        for number in range(BATCHES):
            consumed = first + number * APART * rows + np.arange(rows)
            starts = batches.store_windows(consumed) * length
            sources = [int(batches.store.source_ids(start, 1)[0]) for start in starts.tolist()]
            counts[number] = np.bincount(sources, minlength=len(SHARES))
        shares = 100 * counts / rows
        shown = "  ".join(
            f"{source} {mean:5.2f} ± {spread:4.2f}"
            for source, mean, spread in zip(SHARES, shares.mean(0), shares.std(0), strict=True)
            if source in ("CommonCrawl", "GitHub", "StackExchange")
        )
        without = (counts[:, -1] == 0).mean()
        print(f"  {name:30} {shown}  batches without StackExchange {without:.0%}")


def show_speed(folder: Path) -> None:
    """Prints tokens read per CPU-second, and the memory of open blocks."""
    if not (folder / "index.json").exists():
        write_random(folder)
    store, rows = TokenStore.open(folder), BATCH_TOKENS // 2048
    print(
        f"\nreading {store.tokens:,} tokens: million tokens per CPU-second, first epoch and later"
    )
    for name, options in ORDERS.items():
        batches = train_batches(TokenStore.open(folder), ReadOrder(2048, rows, seed=0, **options))
        rates = []
        steps = batches.windows_per_epoch // rows
        for epoch in range(2):
            begin = time.process_time()
            for step in range(epoch * steps, (epoch + 1) * steps):
                batches.rows(step * BATCH_TOKENS, 0, rows)
            rates.append(steps * BATCH_TOKENS / (time.process_time() - begin) / 1e6)
        memory = batches._open_blocks.nbytes / 1e6 if options.get("pieces", 1) > 1 else 0
        print(f"  {name:30} {rates[0]:6.1f} {rates[1]:6.1f}   open blocks {memory:.0f} MB")


def write_random(folder: Path) -> None:
    """Writes a store of 400 million random tokens in 40 shards."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, shares = np.random.default_rng(0), np.array(list(SHARES.values()))
    shards = []
    for number in range(40):
        sets = generator.choice(len(SHARES), 10_000, p=shares)
        documents = (Encoded(generator.integers(0, 32000, 1000), int(s)) for s in sets)
        shards.append(
            write_shard(
                as_path(folder),
                f"shard-{number:05d}",
                f"{number}",
                1,
                documents,
                32000,
                len(SHARES),
                by_set=True,
            )
        )
    write_index(
        as_path(folder),
        identity={"task": "random", "split": "train", "tokenizer_sha256": "0", "inputs": []},
        vocab_size=32000,
        eos_id=2,
        sources=list(SHARES),
        shards=shards,
        layout="by_set",
    )


if __name__ == "__main__":
    main()
