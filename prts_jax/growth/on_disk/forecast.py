"""What a growth will cost: how it will be done, bytes, memory and time, before it is begun."""

import os
import resource
import tempfile
import time
from dataclasses import dataclass

from prts_jax.checkpoint.commit import existing_parent, free_bytes
from prts_jax.errors import UserError
from prts_jax.growth.on_disk import grow
from prts_jax.growth.on_disk.stream import GrowthPlan, stream_memory
from prts_jax.paths import is_remote

PROBE_BYTES = 64 * 2**20
"""Written to the target's disk to see how fast it is: enough to reach past the first caches."""

REFERENCE_SECONDS = 1.0
"""Upper end of what growth by reference takes at any size; see benchmarks/growth.py."""


@dataclass(frozen=True)
class Forecast:
    """What is expected of a growth.

    Attributes:
      mode: "stream" or "reference".
      reason: why it is streamed where sharing files was hoped for; "" otherwise.
      bytes_read: bytes of values that streaming reads.
      bytes_written: bytes of values that streaming writes.
      bytes_free: free space where the target will be; None where nobody can tell (gs://).
      memory_bytes: largest memory of the process.
      write_rate: bytes a second that the target's disk just took; None where it was not tried.
      seconds: wall time; None where nothing is known of the rate.
    """

    mode: str
    reason: str
    bytes_read: int
    bytes_written: int
    bytes_free: int | None
    memory_bytes: int
    write_rate: float | None
    seconds: float | None


def forecast(work: GrowthPlan, target: str, asked_mode: str = "auto") -> Forecast:
    """Says how a growth will be done and what it will cost; leaves no file behind.

    For the time of streaming it writes up to 64 MB to a nameless file beside the target.

    Args:
      work: the growth.
      target: absolute path or gs:// address of the new checkpoint.
      asked_mode: see `grow.grow_checkpoint`.

    Raises:
      UserError: no such mode, by reference is asked for and cannot be, or the target's directory
        cannot be written.
    """
    mode, reason = grow.expected_mode(work, target, asked_mode)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rate = None
    seconds: float | None = REFERENCE_SECONDS
    if mode == "stream":
        used += stream_memory(work)
        rate = None if is_remote(target) else measured_write_rate(target, work.bytes_written)
        seconds = None if rate is None else work.bytes_written / rate
    return Forecast(
        mode=mode,
        reason=reason,
        bytes_read=work.bytes_read,
        bytes_written=work.bytes_written,
        bytes_free=free_bytes(target),
        memory_bytes=used,
        write_rate=rate,
        seconds=seconds,
    )


def measured_write_rate(target: str, wanted: int = PROBE_BYTES) -> float | None:
    """Returns the bytes a second that reach the disk of a local `target`, by writing some.

    Args:
      target: what will be written there.
      wanted: bytes to try; at most `PROBE_BYTES`, and never more than a tenth of the free space.

    Returns:
      The rate; None where there is no space to try.

    Raises:
      UserError: nothing can be written there.
    """
    count = min(max(wanted, 2**20), PROBE_BYTES, (free_bytes(target) or 0) // 10)
    if not count:
        return None
    block = os.urandom(min(count, 2**20))
    try:
        with tempfile.TemporaryFile(dir=existing_parent(target), buffering=0) as file:
            start = time.monotonic()
            for _ in range(max(count // len(block), 1)):
                file.write(block)
            os.fsync(file.fileno())
            return max(count // len(block), 1) * len(block) / (time.monotonic() - start)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); choose another directory"
        ) from error
