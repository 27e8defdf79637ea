"""Several processes that do one job: they fail together, and files carry what each of them did.

Short steps end with an exchange of errors between all processes. What may take long, and longer on
one host than on another, ends with a file from each in a directory that all of them see: nobody
waits inside a collective, which would time out, and none goes on when another has failed. A process
that dies says nothing; then `jax.distributed` ends the others.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from prts_jax.errors import UserError, first_line
from prts_jax.paths import as_path, write_atomically

FOLDER = "hosts"
"""Of the directory that is being filled: what each process has done. Gone before the commit."""

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
"""How long a process waits to see the directory that the first one made."""

_MESSAGE_BYTES = 1024


@contextlib.contextmanager
def all_processes() -> Iterator[None]:
    """Runs a short block on all processes; an error on one of them is an error on all.

    Alone, a process just runs the block.

    Raises:
      StoppedElsewhereError: the block failed on another process (names it). Its own error a process
        raises as it is.
    """
    if jax.process_count() == 1:
        yield
        return
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
    message = "" if error is None else message_of(error)
    padded = message.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    if error is not None:
        raise error
    texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in np.asarray(rows)]
    raise_first(dict(enumerate(texts)))


def run_on_first(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Calls a function on the first process and gives its result, as JSON would hold it, to all.

    Raises:
      UserError: it failed.
    """
    result: dict[str, Any] = {}
    with all_processes():
        if jax.process_index() == 0:
            result = function()
    if jax.process_count() == 1:
        return result
    text = json.dumps(result).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = np.frombuffer(text.ljust(size)[:size], np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)))
    shared: dict[str, Any] = json.loads(received)
    return shared


def message_of(error: BaseException) -> str:
    """Returns an error as one line: a user's error in its own words."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"


class StoppedElsewhereError(UserError):
    """The error of another process, which ends this one as well."""


def raise_first(errors: Mapping[int, str]) -> None:
    """Raises the message of the first process that has one.

    Raises:
      StoppedElsewhereError: naming the process.
    """
    for process, error in sorted(errors.items()):
        if error:
            raise StoppedElsewhereError(f"process {process}: {error}")


class Reports:
    """What the processes have done, a file each in a directory that all of them see.

    Args:
      directory: that is being filled; the first process has made it.

    Raises:
      UserError: this process does not see the directory.
    """

    def __init__(self, directory: str) -> None:
        self._folder = f"{directory}/{FOLDER}"
        opened = as_path(self._folder) / "opened"
        if jax.process_index() == 0:
            as_path(self._folder).mkdir(parents=True, exist_ok=True)
            opened.write_text("")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not opened.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{directory}: process 0 made it and process {jax.process_index()} does not "
                    "see it; give all the same --target, on a disk that they share or on gs://"
                )
            time.sleep(POLL_SECONDS)

    def write(self, report: Mapping[str, Any]) -> None:
        """Leaves this process's report."""
        write_atomically(self._file(jax.process_index(), "json"), json.dumps(report))

    def fail(self, error: BaseException) -> None:
        """Stops the others, and waits until they have; what another process said goes on."""
        said = isinstance(error, StoppedElsewhereError)
        try:
            self.write({"error": "" if said else message_of(error)})
        except OSError:  # a full disk still has room for a name
            as_path(self._file(jax.process_index(), "failed")).touch()
        with contextlib.suppress(StoppedElsewhereError):
            self.wait()

    def check(self) -> None:
        """Looks for processes that have failed.

        Raises:
          StoppedElsewhereError: the error of the first of them.
        """
        self._raise_errors(self._read())

    def wait(self) -> list[dict[str, Any]]:
        """Waits for all reports and returns them in the order of the processes.

        Raises:
          StoppedElsewhereError: of the first other process that failed; after all have reported,
            so that nobody writes any more.
        """
        while len(reports := self._read()) < jax.process_count():
            time.sleep(POLL_SECONDS)
        self._raise_errors(reports)
        return [reports[process] for process in range(jax.process_count())]

    def remove(self) -> None:
        """Removes the files; all processes must have read them."""
        as_path(self._folder).rmtree()

    def _read(self) -> dict[int, dict[str, Any]]:
        found = {}
        for process in range(jax.process_count()):
            report = as_path(self._file(process, "json"))
            if report.exists():
                found[process] = json.loads(report.read_text())
            elif as_path(self._file(process, "failed")).exists():
                found[process] = {"error": "failed; its own output says why"}
        return found

    def _file(self, process: int, kind: str) -> str:
        return f"{self._folder}/{process}.{kind}"

    def _raise_errors(self, reports: Mapping[int, Mapping[str, Any]]) -> None:
        mine = jax.process_index()
        raise_first(
            {process: report.get("error", "") for process, report in reports.items()} | {mine: ""}
        )
