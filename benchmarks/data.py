"""What preparing and reading tokens costs in CPU time, which other work changes least.

    python benchmarks/data.py [--tokenizer=tokenizer.model] [--seconds=40]

Preparing: `prts data cache`'s work on a file (decompress, parse, tokenize, write, hash) against
SentencePiece alone on the same texts, on one core. Reading: batches in several orders against a
memory map read from begin to end. Contenders take turns, so that a change of the machine's speed
meets them all; a figure is the median of its turns, with the lowest and the highest.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sentencepiece

from data_pipelines.build import Rules
from data_pipelines.cache import cache
from data_pipelines.mixture import train_batches
from data_pipelines.native import NativeTask
from data_pipelines.rows import read_documents
from data_pipelines.sources import EMBEDDED_SHAKESPEARE, SHAKESPEARE, list_files
from data_pipelines.store import TokenStore
from data_pipelines.tokenizer import load_tokenizer

LENGTH, BATCH = 1024, 128


def race(contenders: dict[str, Callable[[], int]], seconds: float) -> dict[str, list[float]]:
    """Runs each contender in turn until the time is over.

    Args:
      contenders: by name; each returns how many tokens it dealt with.
      seconds: of wall time, at least one turn each.

    Returns:
      Million tokens per CPU-second of each turn.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    while time.monotonic() < end or not all(rates.values()):
        for name, contender in contenders.items():
            begin = time.process_time()
            tokens = contender()
            rates[name].append(tokens / (time.process_time() - begin) / 1e6)
    return rates


def show(title: str, rates: dict[str, list[float]], baseline: str) -> None:
    """Prints a table, with each median as a share of the baseline's."""
    print(f"\n{title}\n{'':32} {'median':>8} {'lowest':>8} {'highest':>8}  of {baseline}")
    base = statistics.median(rates[baseline])
    for name, turns in rates.items():
        median = statistics.median(turns)
        print(f"{name:32} {median:8.3f} {min(turns):8.3f} {max(turns):8.3f}  {median / base:6.1%}")


def preparing(tokenizer_file: Path, folder: Path, seconds: float) -> None:
    """Native caching against SentencePiece alone."""
    task = NativeTask(
        name="shakespeare",
        split="train",
        files=tuple(list_files(EMBEDDED_SHAKESPEARE, "train"))[:2],
        sources=tuple(SHAKESPEARE.sets.values()),
        chosen=frozenset(SHAKESPEARE.sets.values()),
        tokenizer=load_tokenizer(tokenizer_file),
    )
    texts = [document.text for file in task.files for document in read_documents(file)]
    processor = sentencepiece.SentencePieceProcessor(model_proto=task.tokenizer.model)
    turn = iter(range(10**9))

    def raw() -> int:
        return sum(len(processor.encode(text)) for text in texts)

    def cached() -> int:
        directory = folder / f"turn{next(turn)}"
        return cache(task, directory, lambda line: None).tokens

    rates = race({"SentencePiece alone": raw, "prts data cache, one worker": cached}, seconds)
    show("Preparing, million tokens per CPU-second", rates, "SentencePiece alone")


def reading(tokenizer_file: Path, folder: Path, seconds: float) -> None:
    """Orders of reading against a memory map from begin to end."""
    sources = tuple(SHAKESPEARE.sets.values())
    task = NativeTask(
        name="shakespeare",
        split="train",
        files=tuple(list_files(EMBEDDED_SHAKESPEARE, "train")),
        sources=sources,
        chosen=frozenset(sources),
        tokenizer=load_tokenizer(tokenizer_file),
    )
    store = cache(task, folder / "store", lambda line: None, Rules(layout="by_set"))
    flat = folder / "flat"
    store.read(0, store.tokens).astype(np.uint16).tofile(flat)
    steps = iter(range(10**9))

    def sequential() -> int:
        tokens = np.memmap(flat, np.uint16, "r")
        windows = (len(tokens) - 1) // LENGTH
        for first in range(0, windows - BATCH + 1, BATCH):
            tokens[first * LENGTH : (first + BATCH) * LENGTH].astype(np.int32)
        return windows // BATCH * BATCH * LENGTH

    def batches(store: TokenStore, mixture: str, block: int) -> Callable[[], int]:
        reader = train_batches(store, mixture, LENGTH, BATCH, seed=0, block=block)

        def read() -> int:
            for _ in range(8):
                reader.rows(next(steps) * BATCH * LENGTH, 0, BATCH)
            return 8 * BATCH * LENGTH

        return read

    shares = ",".join(f"{name}={number}" for number, name in enumerate(sources, 1))
    rates = race(
        {
            "memory map in order": sequential,
            "windows shuffled": batches(store, "", 0),
            "blocks of 16,384 shuffled": batches(store, "", 16384),
            "shares of sets, windows shuffled": batches(store, shares, 0),
        },
        seconds,
    )
    show(
        f"Reading batches of {BATCH} × {LENGTH} with targets, weights and source ids, million "
        "tokens per CPU-second",
        rates,
        "memory map in order",
    )


def main() -> None:
    """Prints both tables, and what they were measured on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=EMBEDDED_SHAKESPEARE / "tokenizer.model",
        help="SentencePiece model (default: the embedded one)",
    )
    parser.add_argument(
        "--seconds", type=float, default=40, help="wall time of both parts together (default: 40)"
    )
    parser.add_argument("--only", choices=["preparing", "reading"], help="one part alone")
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "sentencepiece"))
    print(f"Python {platform.python_version()}, {packages}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        for part in (preparing, reading):
            if arguments.only in (None, part.__name__):
                part(arguments.tokenizer, Path(folder), arguments.seconds / 2)


if __name__ == "__main__":
    main()
