"""Single windows of a file that is not in memory: the store's reads against a memory map.

    python benchmarks/cold_reads.py --folder=/disk [--megabytes=1024]

The file is filled with noise (zeros might be a hole), dropped from the page cache before each turn,
and removed at the end. "Read" is what came from the disk for each window asked for: a page fault of
a memory map reads ahead.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.store.files import open_files

WINDOW, WINDOWS, DTYPE = 2048, 500, np.dtype("<u2")
PIECE = 1 << 24


def main() -> None:
    """Prints what a window takes through each way of reading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="where to make the file")
    parser.add_argument("--megabytes", type=int, default=1024, help="its size (default: 1024)")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "tokens"
        with open(path, "wb") as file:
            for _ in range(0, arguments.megabytes << 20, PIECE):
                file.write(random.bytes(PIECE))
            file.flush()
            os.fsync(file.fileno())
        count = path.stat().st_size // DTYPE.itemsize
        print(f"{WINDOWS} windows of {WINDOW} tokens, {WINDOW * DTYPE.itemsize / 1e3:.1f} kB each")
        for turn in range(3):
            for name, reader in (("store", through_the_store), ("memory map", through_a_map)):
                starts = random.integers(0, count - WINDOW, WINDOWS).tolist()
                print(f"turn {turn + 1}, {name:12}" + cost(path, reader(path), starts))


def through_the_store(path: Path) -> Callable[[int], np.ndarray]:
    """Returns a reader of the window at a token, as token stores read it."""
    files = open_files(path.parent)
    return lambda start: files.read(path.name, DTYPE, start, start + WINDOW)


def through_a_map(path: Path) -> Callable[[int], np.ndarray]:
    """Returns a reader that copies the window out of a memory map."""
    tokens = np.memmap(path, DTYPE, "r")
    return lambda start: np.array(tokens[start : start + WINDOW])


def cost(path: Path, read: Callable[[int], np.ndarray], starts: list[int]) -> str:
    """Reads windows of a file that is dropped from memory, and says what one took."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    wall, cpu, blocks = time.perf_counter(), time.process_time(), _blocks()
    for start in starts:
        read(start)
    wall, cpu, blocks = time.perf_counter() - wall, time.process_time() - cpu, _blocks() - blocks
    share = 1e6 / len(starts)
    kilobytes = blocks * 512 / 1e3 / len(starts)
    return f"{wall * share:8.0f} µs {cpu * share:8.0f} µs of CPU {kilobytes:8.1f} kB read"


def _blocks() -> int:
    """Blocks of 512 bytes that this process has had read from disks."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


if __name__ == "__main__":
    main()
