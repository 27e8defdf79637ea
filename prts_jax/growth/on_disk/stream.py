"""Streaming growth: checkpoint → checkpoint, a few blocks of single layers in memory at a time."""

import dataclasses
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.commit import check_space, new_checkpoint
from prts_jax.checkpoint.lineage import Digests
from prts_jax.checkpoint.tokenizer import carry_tokenizer
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk.optimizer import (
    OptimizerPlan,
    optimizer_bytes,
    stream_optimizer,
)
from prts_jax.growth.on_disk.pieces import LeafGrowth, Piece, piece_memory, pieces
from prts_jax.growth.on_disk.plan import (
    GrowthPlan,
    plan,
)
from prts_jax.paths import as_path

__all__ = [
    "GrowthPlan",
    "GrowthReport",
    "Progress",
    "plan",
    "stream",
    "stream_memory",
]

MEMORY_BUDGET = 2**30
"""Bytes of memory that the values in flight may take, if one piece does not take more."""

Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all."""


@dataclass(frozen=True)
class GrowthReport:
    """What a growth did.

    Attributes:
      mode: how: "stream" or "reference".
      seconds: wall time.
      bytes_read: bytes of values read.
      bytes_written: bytes of values written.
      peak_rss_bytes: largest memory of the process so far.
      layers: source layer of each target layer.
      files_linked: data files that the new checkpoint shares with its source.
      bytes_linked: size of these files.
      reason: why it was streamed although sharing files would be faster; "" if it was asked for.
    """

    mode: str
    seconds: float
    bytes_read: int
    bytes_written: int
    peak_rss_bytes: int
    layers: tuple[int, ...]
    files_linked: int = 0
    bytes_linked: int = 0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON would hold it."""
        return dataclasses.asdict(self) | {"layers": list(self.layers)}


def stream_memory(work: GrowthPlan) -> int:
    """Returns about how many bytes of memory streaming takes for values."""
    return max(piece_memory(work, path) for path in work.declarations) * _workers(work)


def stream(
    source: str,
    target: str,
    growth_map: GrowthMap,
    *,
    progress: Progress | None = None,
    optimizer: OptimizerPlan | None = None,
) -> GrowthReport:
    """Grows a checkpoint into a new one with the memory of about one layer.

    Each source layer is read once, compared with its digest, and written to every target layer
    that comes from it, widened where the map widens it (a leaf without layers at once); zero
    outputs are written without reading. Layers of a dense map mix all source layers, which are read
    again for every few of them. The grown checkpoint has no optimizer state unless that is asked
    for; its lineage continues the source's.
    Killed at any moment it leaves nothing that looks like a checkpoint and can be run again.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      target: directory of the new checkpoint, which must not exist.
      growth_map: a valid map from the checkpoint's model.
      progress: told of every layer of the parameters written.
      optimizer: what to do about the optimizer's state; None leaves it behind.

    Returns:
      What was done.

    Raises:
      UserError: see `plan`; or `target` exists, the disk is too small, another process writes
        there, or a source layer is damaged (names the leaf and the layer). Nothing is left behind.
    """
    start = time.monotonic()
    work = plan(source, growth_map)
    target = str(as_path(target))
    moments_read, moments_written = optimizer_bytes(optimizer)
    check_space(target, work.bytes_written + moments_written)
    with new_checkpoint(target) as directory:
        digests = write_pieces(
            work,
            directory,
            pieces(work),
            lambda done: progress(done, work.bytes_written) if progress else None,
        )
        arrays.write_tree(directory, work.declarations)
        if optimizer is not None:
            stream_optimizer(optimizer, directory)
        carry_tokenizer(*(f"{where}/{layout.TOKENIZER}" for where in (work.source, directory)))
        layout.write_lineage(directory, work.lineage.grown(growth_map, digests))
    return GrowthReport(
        mode="stream",
        seconds=time.monotonic() - start,
        bytes_read=work.bytes_read + moments_read,
        bytes_written=work.bytes_written + moments_written,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        layers=growth_map.layers,
    )


def write_pieces(
    work: GrowthPlan,
    directory: str,
    parts: Sequence[Piece],
    step: Callable[[int], None],
    database: str = "",
) -> Digests:
    """Does pieces of a growth, several at a time where cores and memory allow it.

    Args:
      work: the growth.
      directory: of the checkpoint in the making.
      parts: of `pieces(work)`.
      step: called after each with the bytes written so far; what it raises ends the work.
      database: see `arrays.create_leaf`.

    Returns:
      The digests of what was written, "" for layers of other pieces.

    Raises:
      UserError: a source layer is damaged or cannot be read.
    """
    done = 0
    digests = {
        path: [""] * (declaration.shape[0] if declaration.stacked else 1)
        for path, declaration in work.declarations.items()
    }
    growths = {
        path: LeafGrowth(work, directory, path, database)
        for path in {part.path: None for part in parts}
    }
    with ThreadPoolExecutor(_workers(work)) as pool:
        tasks = {pool.submit(growths[part.path].run, part): part for part in parts}
        try:
            for task in as_completed(tasks):
                for at, digest in task.result().items():
                    digests[tasks[task].path][at] = digest
                done += tasks[task].nbytes
                step(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {path: tuple(layers) for path, layers in digests.items()}


def _workers(work: GrowthPlan) -> int:
    # One more than cores: while one waits for the disk, the others read and hash.
    largest = max(piece_memory(work, path) for path in work.declarations)
    return max(1, min((os.cpu_count() or 1) + 1, MEMORY_BUDGET // largest))
