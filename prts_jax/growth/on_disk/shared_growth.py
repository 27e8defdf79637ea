"""Streaming growth by several processes: each writes its share, and the first makes it whole.

Every process runs this under `jax.distributed` and sees the same source and target. Pieces are
dealt out by their bytes. Each process writes a database of its own, `params/ocdbt.process_N` (and
another of moments, if they are asked for), as Orbax's own saves do; at the end the first one makes
the checkpoint's databases, which point into them, and commits.
"""

import contextlib
import resource
import time
from collections.abc import Sequence
from typing import Any

import jax

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.commit import check_space, directory_to_fill, new_checkpoint, writing
from prts_jax.checkpoint.layout import OPTIMIZER
from prts_jax.checkpoint.lineage import Digests
from prts_jax.checkpoint.tokenizer import carry_tokenizer
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk.optimizer import OptimizerPlan, optimizer_bytes, write_moments
from prts_jax.growth.on_disk.pieces import Piece, pieces
from prts_jax.growth.on_disk.plan import GrowthPlan, plan
from prts_jax.growth.on_disk.stream import GrowthReport, Progress, write_pieces
from prts_jax.paths import as_path
from prts_jax.processes import Reports, all_processes


def stream_together(
    source: str,
    target: str,
    growth_map: GrowthMap,
    *,
    progress: Progress | None = None,
    optimizer: OptimizerPlan | None = None,
) -> GrowthReport:
    """Grows a checkpoint as `grow.stream` does, each process a share of the layers.

    Every process calls it with the same arguments. The values and their digests are those that one
    process would write. An error on any process ends all of them, and nothing is left behind.

    Args:
      source: a complete checkpoint that every process sees.
      target: directory of the new checkpoint, on a disk that all processes share, or on gs://.
      growth_map: a valid map from the checkpoint's model.
      progress: told of every layer of the parameters that this process wrote, and of its share.
      optimizer: what to do about the optimizer's state; None leaves it behind.

    Returns:
      What all of them did together; the largest memory of a process.

    Raises:
      UserError: see `grow.stream`; of another process, or a target that not all of them see.
    """
    start = time.monotonic()
    target = str(as_path(target))
    moments_read, moments_written = optimizer_bytes(optimizer)
    first = jax.process_index() == 0
    with all_processes(), contextlib.ExitStack() as checkpoint:
        with all_processes():
            work = plan(source, growth_map)
            if first:
                check_space(target, work.bytes_written + moments_written)
                checkpoint.enter_context(new_checkpoint(target))
        directory = directory_to_fill(target)
        with all_processes():
            reports = Reports(directory)
        # All have read the reports, also of an error, before they are removed.
        with all_processes():
            found = _write_share(
                work, optimizer, target, reports, progress or (lambda done, total: None)
            )
        if first:
            reports.remove()
            written = _merged([report["digests"] for report in found], work)
            arrays.merge_databases(directory, len(found))
            arrays.write_tree(directory, work.declarations)
            if optimizer is not None:
                arrays.merge_databases(directory, len(found), OPTIMIZER)
                arrays.write_tree(directory, optimizer.declarations, OPTIMIZER)
            carry_tokenizer(*(f"{where}/{layout.TOKENIZER}" for where in (work.source, directory)))
            layout.write_lineage(directory, work.lineage.grown(growth_map, written))
    return GrowthReport(
        mode="stream",
        seconds=time.monotonic() - start,
        bytes_read=work.bytes_read + moments_read,
        bytes_written=work.bytes_written + moments_written,
        peak_rss_bytes=max(report["peak_rss_bytes"] for report in found),
        layers=growth_map.layers,
    )


def shares(parts: Sequence[Piece], processes: int) -> list[list[Piece]]:
    """Deals pieces out to processes: the largest first, each to the one that has the least.

    The same on every process. No share has more bytes than an equal one and the largest piece.
    """
    dealt: list[list[Piece]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for part in sorted(parts, key=lambda part: -part.nbytes):
        least = loads.index(min(loads))
        dealt[least].append(part)
        loads[least] += part.nbytes
    return dealt


def _write_share(
    work: GrowthPlan,
    optimizer: OptimizerPlan | None,
    target: str,
    reports: Reports,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Writes this process's share and returns what all of them report."""
    process, processes = jax.process_index(), jax.process_count()
    directory = directory_to_fill(target)
    own = shares(pieces(work), processes)[process]
    total = sum(part.nbytes for part in own)

    def step(done: int) -> None:
        reports.check()
        progress(done, total)

    try:
        database = arrays.process_database(process)
        with writing(target):
            digests = write_pieces(work, directory, own, step, database)
            if optimizer is not None:
                write_moments(optimizer, directory, process, processes, reports.check)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            reports.write({"digests": digests, "peak_rss_bytes": peak})
    except BaseException as error:
        reports.fail(error)
        raise
    return reports.wait()


def _merged(found: Sequence[Digests], work: GrowthPlan) -> Digests:
    """Returns the digests of all layers, each from the process that wrote it."""
    return {
        path: tuple(max(layer) for layer in zip(*(one[path] for one in found), strict=True))
        for path in work.declarations
    }
