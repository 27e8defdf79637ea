"""The heartbeat of a process: a thread that stores its figures and gathers those of the others.

All input and output is the thread's, so that no step waits for the storage. Between processes
figures go through JAX's coordination service, without a barrier: a line of metrics has those that
have arrived.
"""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from prts_jax.distributed import coordination_client
from prts_jax.heartbeats import BEAT_SECONDS, FOLDER, Beat, parse
from prts_jax.paths import as_path, make_folders, write_atomically

LAST_SECONDS = 5.0
"""Seconds that the end of a process waits for its last beat."""

SHARED = "prts_jax/beats"
"""Folder of keys in the coordination service."""


class Heartbeat:
    """Figures of this process, and of the others as far as they are known."""

    def __init__(self, workdir: str) -> None:
        """Makes a heartbeat of the run in `workdir`; it stores nothing before the first `step`."""
        self._folder = as_path(workdir) / FOLDER
        self._step: tuple[int, float] | None = None
        self._seconds: tuple[float | None, float | None] = (None, None)
        self._client = coordination_client()
        self._known: list[Beat] = []
        self._wake, self._ending = threading.Event(), False
        self._stored = 0.0

    def step(self, step: int) -> None:
        """Takes note of a finished step of the lineage, or of the one that a stage starts from."""
        self._step = step, time.time()

    def line(self, step_seconds: float, host_seconds: float) -> dict[str, Any]:
        """Takes the figures of this process for a line of metrics, and returns those of all.

        Args:
          step_seconds: see `Beat`.
          host_seconds: see `Beat`.

        Returns:
          Keys for the line: `hbm_peak_bytes` of the fullest device where the backend tells; with
          several processes `median_host_seconds`, `slowest_host_seconds` and `slowest_host`.
        """
        self._seconds = step_seconds, host_seconds
        self._wake.set()
        peaks = [beat.hbm_peak_bytes for beat in self._known if beat.hbm_peak_bytes is not None]
        figures: dict[str, Any] = {"hbm_peak_bytes": max(peaks)} if peaks else {}
        timed = [
            (beat.host_seconds, beat.host) for beat in self._known if beat.host_seconds is not None
        ]
        if jax.process_count() > 1 and timed:
            slowest, host = max(timed)
            figures["median_host_seconds"] = statistics.median(seconds for seconds, _ in timed)
            figures |= {"slowest_host_seconds": slowest, "slowest_host": host}
        return figures

    @contextlib.contextmanager
    def beating(self) -> Iterator["Heartbeat"]:
        """Runs the thread within the context; its last beat says that the process has ended."""
        thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending = True
            self._wake.set()
            thread.join(LAST_SECONDS)

    def _run(self) -> None:
        # A beat that fails does not end the run: its age tells.
        with contextlib.suppress(Exception):
            self._remove_hosts_of_larger_starts()
        while not self._ending:
            with contextlib.suppress(Exception):
                self._exchange()
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
        self._stored = 0.0
        with contextlib.suppress(Exception):
            self._exchange()

    def _remove_hosts_of_larger_starts(self) -> None:
        if jax.process_index() == 0 and self._folder.exists():
            names = {_file(host) for host in range(jax.process_count())}
            for path in self._folder.iterdir():
                if path.name.startswith("host_") and path.name not in names:
                    path.unlink()

    def _exchange(self) -> None:
        """Shares this process's figures, reads the others', and stores the own if that is due."""
        if self._step is None:
            return
        process, name = jax.process_index(), socket.gethostname()
        figures = (*self._step, *self._seconds, self._ending, *_device_memory())
        beat = Beat(process, name, time.time(), *figures)
        self._known = [beat]
        if time.monotonic() - self._stored >= BEAT_SECONDS or not self._stored:
            make_folders(self._folder)
            write_atomically(self._folder / _file(beat.host), beat.to_json())
            self._stored = time.monotonic()
        if self._client is not None:
            key = f"{SHARED}/{beat.host}"
            self._client.key_value_set(key, beat.to_json(), allow_overwrite=True)
            if beat.host == 0:
                values = self._client.key_value_dir_get(SHARED)
                self._known = parse("".join(text for _, text in values))


def _file(host: int) -> str:
    return f"host_{host}.json"


def _device_memory() -> tuple[int | None, int | None, int | None]:
    """Returns bytes in use, their peak and their limit on the fullest device of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]

    def most(key: str) -> int | None:
        return max((of_one[key] for of_one in stats if key in of_one), default=None)

    return most("bytes_in_use"), most("peak_bytes_in_use"), most("bytes_limit")
