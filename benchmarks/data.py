"""Rates of preparing and reading tokens, beside those of other programs for the same work.

    pip install grain
    python benchmarks/data.py [--tokenizer=tokenizer.model] [--seconds=160]

Preparing: `prts data cache`'s work on a file (decompress, parse, tokenize, write, hash) against
the tokenizer's library alone on the same texts, on one core; and two workers against one. Reading:
batches in several orders against a memory map read from begin to end, seqio's cached tasks and
Grain.
Steps: see `data_steps.py`. Contenders take turns, so that a change of the machine's speed meets
them all; a figure is the median of its turns, with the lowest and the highest.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from numpy.lib.stride_tricks import sliding_window_view
from other_readers import grain_over_memory_map, seqio_cached

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.text.native import NativeTask
from data_pipelines.text.rows import read_documents
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SHAKESPEARE, list_files
from data_pipelines.text.tokenizer import load_tokenizer

LENGTH, BATCH, TURN = 1024, 128, 8
COPIES = 24  # of the corpus, so that the start of processes is little of the work


def race(
    contenders: dict[str, Callable[[], int]],
    seconds: float,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Runs each contender in turn until the time is over.

    Args:
      contenders: by name; each returns how many tokens it dealt with.
      seconds: of wall time, at least one turn each.
      clock: CPU time of all threads, which other work changes least; or wall time.

    Returns:
      Million tokens per second of the clock, of each turn.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    while time.monotonic() < end or not all(rates.values()):
        for name, contender in contenders.items():
            begin = clock()
            tokens = contender()
            rates[name].append(tokens / (clock() - begin) / 1e6)
    return rates


def show(title: str, rates: dict[str, list[float]], baseline: str) -> None:
    """Prints a table, with each median as a share of the baseline's."""
    print(f"\n{title}\n{'':36} {'median':>8} {'lowest':>8} {'highest':>8}  of {baseline}")
    base = statistics.median(rates[baseline])
    for name, turns in rates.items():
        median = statistics.median(turns)
        print(f"{name:36} {median:8.3f} {min(turns):8.3f} {max(turns):8.3f}  {median / base:6.1%}")


def shakespeare(
    tokenizer_file: Path, corpus: Path = EMBEDDED_SHAKESPEARE, files: int | None = None
) -> NativeTask:
    """Returns the embedded corpus, or one of its form, or its first files, with all its sets."""
    sources = tuple(SHAKESPEARE.sets.values())
    return NativeTask(
        name="shakespeare",
        split="train",
        files=tuple(list_files(corpus, "train"))[:files],
        sources=sources,
        chosen=frozenset(sources),
        tokenizer=load_tokenizer(tokenizer_file),
    )


def preparing(tokenizer_file: Path, folder: Path, seconds: float) -> None:
    """Native caching against the tokenizer's library alone, in one process."""
    task = shakespeare(tokenizer_file, files=2)
    texts = [document.text for file in task.files for document in read_documents(file)]
    turn = iter(range(10**9))
    if task.tokenizer.file == "tokenizer.json":
        tokenizer = tokenizers.Tokenizer.from_buffer(task.tokenizer.model)
        library = "Tokenizer.encode_batch alone"

        def raw() -> int:
            encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
            return sum(len(one.ids) for one in encoded)

    else:
        processor = sentencepiece.SentencePieceProcessor(model_proto=task.tokenizer.model)
        library = "SentencePiece alone"

        def raw() -> int:
            return sum(len(processor.encode(text)) for text in texts)

    def cached() -> int:
        directory = folder / f"turn{next(turn)}"
        return cache(task, directory, lambda line: None).tokens

    rates = race({library: raw, "prts data cache, one worker": cached}, seconds)
    show("Preparing, million tokens per CPU-second", rates, library)


def workers(tokenizer_file: Path, folder: Path, seconds: float) -> None:
    """Two workers against one on many copies of the corpus."""
    corpus = folder / "corpus"
    for copy in range(COPIES):
        shutil.copytree(EMBEDDED_SHAKESPEARE / "train" / "chunk1", corpus / f"train/chunk{copy}")
    task, turn = shakespeare(tokenizer_file, corpus), iter(range(10**9))

    def cached(count: int) -> Callable[[], int]:
        def run() -> int:
            directory = folder / f"workers{next(turn)}"
            tokens = cache(task, directory, lambda line: None, workers=count).tokens
            shutil.rmtree(directory)
            return tokens

        return run

    def cpu_time() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    for name, clock in (("second", time.perf_counter), ("CPU-second", cpu_time)):
        contenders = {"one worker": cached(1), "two workers": cached(2)}
        rates = race(contenders, seconds / 2, clock)
        show(f"Preparing, million tokens per {name}, all processes together", rates, "one worker")


def reading(tokenizer_file: Path, folder: Path, seconds: float) -> None:
    """Orders of reading against a memory map from begin to end, seqio and Grain."""
    task = shakespeare(tokenizer_file)
    store = cache(task, folder / "store", lambda line: None, Rules(layout="by_set"))
    flat = folder / "flat"
    everything = store.read(0, store.tokens)
    everything.astype(np.uint16).tofile(flat)
    examples = sliding_window_view(everything, LENGTH + 1)[::LENGTH]
    step = iter(range(10**9))

    def sequential() -> int:
        tokens = np.memmap(flat, np.uint16, "r")
        windows = (len(tokens) - 1) // LENGTH
        for first in range(0, windows - BATCH + 1, BATCH):
            tokens[first * LENGTH : (first + BATCH) * LENGTH].astype(np.int32)
        return windows // BATCH * BATCH * LENGTH

    def batches(mixture: str = "", block: int = 0, documents: bool = False) -> Callable[[], int]:
        reader = train_batches(
            store,
            ReadOrder(LENGTH, BATCH, seed=0, block=block, documents=documents, mixture=mixture),
        )

        def read() -> int:
            for _ in range(TURN):
                reader.rows(next(step) * BATCH * LENGTH, 0, BATCH)
            return TURN * BATCH * LENGTH

        return read

    shares = ",".join(f"{name}={number}" for number, name in enumerate(task.sources, 1))
    rates = race(
        {
            "memory map in order, tokens alone": sequential,
            "windows shuffled": batches(),
            "blocks of 16,384 shuffled": batches(block=16384),
            "windows shuffled, documents apart": batches(documents=True),
            "shares of sets, windows shuffled": batches(shares),
            "seqio, cached windows": seqio_cached(examples, folder / "seqio", BATCH, TURN),
            "Grain over a memory map": grain_over_memory_map(flat, LENGTH, BATCH, TURN),
        },
        seconds,
    )
    show(
        f"Reading batches of {BATCH} × {LENGTH}, million tokens per CPU-second",
        rates,
        "memory map in order, tokens alone",
    )
    _show_seek(train_batches(store, ReadOrder(LENGTH, BATCH, seed=0)))


def _show_seek(batches: TrainBatches) -> None:
    """Prints what the first batch takes at the first step and at a late one, store open."""
    for step in (0, 10**7):
        times = []
        for turn in range(20):
            begin = time.process_time()
            batches.rows((step + turn) * BATCH * LENGTH, 0, BATCH)
            times.append(time.process_time() - begin)
        print(f"a batch at step {step:,}: {statistics.median(times) * 1e3:.2f} ms")


def training(tokenizer_file: Path, folder: Path, seconds: float) -> None:
    """The quickstart's training steps, on a store made by its own tokenizer."""
    from data_steps import train_in_turns  # here, for workers import this file, and need no jax

    task = shakespeare(EMBEDDED_SHAKESPEARE / "tokenizer.model")
    train_in_turns(cache(task, folder / "trained", lambda line: None), seconds)


def main() -> None:
    """Prints the tables, and what they were measured on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=EMBEDDED_SHAKESPEARE / "tokenizer.model",
        help="SentencePiece model (default: the embedded one)",
    )
    parser.add_argument(
        "--seconds", type=float, default=160, help="wall time of all parts together (default: 160)"
    )
    parts = {part.__name__: part for part in (preparing, workers, reading, training)}
    parser.add_argument("--only", choices=parts, help="one part alone")
    arguments = parser.parse_args()
    names = ("numpy", "sentencepiece", "jax", "seqio", "tensorflow", "grain")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"Python {platform.python_version()}, {packages}, {platform.machine()}")
    print(f"{os.cpu_count()} cores, load averages of 1, 5 and 15 minutes before: {load}")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [arguments.only] if arguments.only else list(parts)
        for name in chosen:
            parts[name](arguments.tokenizer, Path(folder), arguments.seconds / len(chosen))


if __name__ == "__main__":
    main()
