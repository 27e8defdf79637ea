"""Rows of an evaluation batch that fit in memory."""

import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax

from prts_jax.config import ModelConfig
from prts_jax.errors import UserError, first_line

BATCH_BYTES = 4 * 2**30
"""Most bytes of logits and attention scores of a batch on one device."""


def rows_of_batch(model: ModelConfig, rows: int, length: int, shares: int) -> int:
    """Returns the rows of a batch: a multiple of `shares`, at most `rows`, as many as fit.

    `shares` are the parts into which the devices split a batch; `rows` is rounded up to a multiple.
    """
    most = max(BATCH_BYTES // bytes_of_row(model, length), 1)
    return min(-(-rows // shares), most) * shares


def bytes_of_row(model: ModelConfig, length: int) -> int:
    """Returns the bytes of a row's float32 logits and, on a CPU, of one layer's attention scores.

    TPUs and GPUs compute attention in blocks.
    """
    scores = model.heads * length if jax.default_backend() == "cpu" else 0
    return 4 * length * (model.vocab + scores)


def check_fits(compiled: jax.stages.Compiled, length: int) -> None:
    """Checks that a compiled program's intermediate values fit in a device's free memory.

    Raises:
      UserError: they do not fit.
    """
    analysis = compiled.memory_analysis()
    needed, free = getattr(analysis, "temp_size_in_bytes", 0), _free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"rows of {length:,} tokens: a batch needs {needed / 2**30:,.1f} GiB and a device has "
            f"{free / 2**30:,.1f} GiB free; give a smaller --length"
        )


@contextmanager
def out_of_memory(advice: str) -> Iterator[None]:
    """Converts a device's lack of memory to a UserError of one line that ends in `advice`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"{first_line(error)}; {advice}") from error


def _free_bytes() -> int | None:
    """Returns the free bytes of the first device, or of this machine for a CPU; None if unknown."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        known: Mapping[str, int] = device.memory_stats() or {}
        return known["bytes_limit"] - known["bytes_in_use"] if "bytes_limit" in known else None
    limits = []
    if Path("/proc/meminfo").exists():
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        limits.append(sizes["MemAvailable"])
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limits.append(limit - pages * resource.getpagesize())
    return min(limits, default=None)
