"""The trainer of a run on several hosts as a child process, whose native aborts become one line.

Where process 0 dies, JAX's coordination client aborts the other processes from a C++ thread, with
a stack on standard error and exit code 134. No option of jaxlib 0.10 changes that, and Python
cannot catch it. The parent passes signals on, holds the client's last messages back and ends with
exit code 75.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import sys
import time

from prts_jax.cli import EXIT_RESUMABLE

_CLIENT = re.compile(
    rb"[WEF]\d{4} [^\]]*(coordination_service|preemption_sync_manager|distributed|client\.h:)"
    rb"|terminate called"
)
"""Start of a message of JAX's coordination client that announces its end, as absl logs it."""

_HELD_SECONDS = 5.0
"""Time after which messages that no abort has followed are shown."""

_OURS = b"prts "
"""Start of the lines that this project writes about a run's end."""

_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
_AGAIN = "start the same command on all hosts, the run resumes from its last checkpoint"


def guard() -> int | None:
    """Forks; the parent waits for the child and copies its standard error.

    SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on; SIGINT reaches a terminal's whole group by
    itself. The child dies with its parent. Call it before JAX is imported: threads do not survive.

    Returns:
      None in the child. In the parent, the child's exit code; 75 where JAX aborted it for the death
      of another process; 128 + N where another signal N ended it.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    if not (child := os.fork()):
        _die_with(parent)
        os.dup2(writing, 2)
        os.close(reading)
        os.close(writing)
        return None
    os.close(writing)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    held = _copy(reading)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGABRT and held:
        _say(f"{_dead_process(held)} does not answer; {_AGAIN}")
        return EXIT_RESUMABLE
    if code != EXIT_RESUMABLE:
        _write(held)
    if code < 0:
        _say(f"ended by {signal.Signals(-code).name}; {_AGAIN}")
        return 128 - code
    return code


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_RESUMABLE)


def _copy(source: int) -> bytes:
    """Copies a pipe to standard error until its end, line by line.

    From a message of the coordination client on, all lines but our own are held back; after
    `_HELD_SECONDS` without an abort they are shown.

    Returns:
      The lines held at the end, and an unfinished one: not copied.
    """
    line, held, since = b"", b"", 0.0
    while True:
        ready = select.select([source], [], [], _HELD_SECONDS)[0]
        if held and time.monotonic() - since > _HELD_SECONDS:
            held = _write(held)
        if not ready:
            line = _write(line)
            continue
        if not (text := os.read(source, 1 << 16)):
            return held + line if held else _write(line)
        *lines, line = (line + text).split(b"\n")
        for complete in lines:
            if complete.startswith(_OURS) or not (held or _CLIENT.match(complete)):
                _write(complete + b"\n")
                continue
            since = since if held else time.monotonic()
            held += complete + b"\n"


def _write(text: bytes) -> bytes:
    """Writes to standard error, whose reader may be gone; returns nothing that is left."""
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(2, text) :]
    return b""


def _dead_process(messages: bytes) -> str:
    """Returns the processes that the client blames; the service that it lost is in process 0."""
    blamed = sorted({int(number) for number in re.findall(rb"task:(\d+)", messages)})
    return "process " + (" and ".join(map(str, blamed)) or "0")


def _say(message: str) -> None:
    _write(f"prts train: {message}\n".encode())
