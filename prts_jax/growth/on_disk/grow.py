"""Growth of a checkpoint into another: by reference where possible, otherwise streamed."""

import dataclasses
import logging
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.commit import check_space, new_checkpoint
from prts_jax.checkpoint.layout import EMA, OPTIMIZER, PARAMS
from prts_jax.checkpoint.lineage import Digests
from prts_jax.checkpoint.tokenizer import (
    carry_tokenizer,
    check_tokenizer,
    file_digests,
    read_tokenizer,
)
from prts_jax.errors import UserError
from prts_jax.growth.on_disk import reference
from prts_jax.growth.on_disk.plan import GrowthPlan, LeafPlan
from prts_jax.growth.on_disk.stream import stream, stream_memory

MODES = ("auto", "stream", "reference")

Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all."""


@dataclass(frozen=True)
class Execution:
    """A planned growth and the mode that executes it.

    Attributes:
      work: the growth.
      mode: "stream" or "reference".
      reason: why it is streamed although sharing files would be faster; "" otherwise.
      insists: whether the user asked for the mode, so that nothing else will do.
    """

    work: GrowthPlan
    mode: str
    reason: str = ""
    insists: bool = False

    @property
    def streamed(self) -> tuple[LeafPlan, ...]:
        """The leaves whose values are read and written."""
        return self.work.leaves if self.mode == "stream" else self.work.unshared

    @property
    def bytes_read(self) -> int:
        """Bytes of values that streaming reads."""
        return sum(leaf.bytes_read for leaf in self.streamed)

    @property
    def bytes_written(self) -> int:
        """Bytes of values that streaming writes."""
        return sum(leaf.bytes_written for leaf in self.streamed)

    @property
    def memory_bytes(self) -> int:
        """Largest memory of the process, about."""
        return _peak_memory() + stream_memory(self.work, self.streamed)


@dataclass(frozen=True)
class GrowthReport:
    """The result of a growth.

    Attributes:
      mode: "stream" or "reference".
      seconds: wall time of the execution, without the plan.
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


def choose(work: GrowthPlan, mode: str = "auto") -> Execution:
    """Chooses how a growth is executed; writes nothing.

    Args:
      work: the growth.
      mode: "reference" shares the source's files, "stream" copies layer by layer, "auto" is by
        reference where nothing speaks against it.

    Raises:
      UserError: no such mode, or "reference" is not possible.
    """
    if mode not in MODES:
        raise UserError(f"growth mode: {mode!r} is none of {', '.join(MODES)}; name one of them")
    if mode == "stream":
        return Execution(work, "stream", insists=True)
    reason = reference.obstacle(work)
    if reason and mode == "reference":
        raise reference.CannotReferenceError(work.source, reason)
    return Execution(work, "stream" if reason else "reference", reason, mode == "reference")


def execute(execution: Execution, progress: Progress | None = None) -> GrowthReport:
    """Makes the new checkpoint. Killed at any moment, it leaves nothing that looks like one.

    Args:
      execution: from `choose`.
      progress: told of every layer streamed.

    Raises:
      UserError: the target exists, another process writes there, the disk is too small, a source
        layer is damaged (names the leaf and the layer), or "reference" was asked for and the files
        or the file system do not allow it. Nothing is left behind.
    """
    start = time.monotonic()
    if execution.reason:
        logging.getLogger(__name__).warning(
            "streaming, because growth by reference is not possible: %s", execution.reason
        )
    work = execution.work
    check_space(work.target, execution.bytes_written)
    try:
        linked = _write(execution, progress)
    except reference.CannotReferenceError as error:
        if execution.insists:
            raise
        return execute(Execution(work, "stream", error.reason), progress)
    return GrowthReport(
        mode=execution.mode,
        seconds=time.monotonic() - start,
        bytes_read=execution.bytes_read + linked.bytes_read,
        bytes_written=execution.bytes_written,
        peak_rss_bytes=_peak_memory(),
        layers=work.growth_map.layers,
        files_linked=len(linked.files),
        bytes_linked=sum(linked.files.values()),
        reason=execution.reason,
    )


def _write(execution: Execution, progress: Progress | None) -> reference.Linked:
    work, total = execution.work, execution.bytes_written
    by_reference = execution.mode == "reference"
    shared = reference.shared_bytes(work) if by_reference else None
    linked = reference.Linked()
    check_tokenizer(work.source, work.lineage)
    with new_checkpoint(work.target) as directory:
        if shared is not None:
            reference.link(work, shared, directory)
        digests = stream(
            work,
            execution.streamed,
            directory,
            lambda written: progress(written, total) if progress else None,
        )
        _describe(work, directory)
        if shared is not None:
            digests[PARAMS] = reference.digests(work)
            linked = reference.read_back(work, shared, directory, digests[PARAMS])
        _finish(work, directory, digests)
    return linked


def _describe(work: GrowthPlan, directory: str) -> None:
    """Writes the description of each tree that Orbax looks for beside the arrays."""
    for item, leaves in ((PARAMS, work.params), (OPTIMIZER, work.optimizer), (EMA, work.ema)):
        if leaves:
            tree = {leaf.recipe.path: leaf.recipe.declaration for leaf in leaves}
            arrays.write_tree(directory, tree, item)


def _finish(work: GrowthPlan, directory: str, digests: Mapping[str, Digests]) -> None:
    """Copies the tokenizer and writes the lineage, which makes the checkpoint complete."""
    source, target = (f"{where}/{layout.TOKENIZER}" for where in (work.source, directory))
    carry_tokenizer(source, target)
    lineage = work.lineage.grown(
        work.growth_map,
        digests[PARAMS],
        optimizer_digests=digests[OPTIMIZER],
        optimizer=work.policy,
        ema_digests=digests[EMA],
    )
    carried = file_digests(read_tokenizer(target))
    layout.write_lineage(directory, dataclasses.replace(lineage, tokenizer=carried))


def _peak_memory() -> int:
    """Returns the largest memory of the process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
