"""Handshake of the hosts of one attempt, before JAX connects them.

    python -m prts_jax.launch.handshake 10.0.0.1:8476 HOSTS PROCESS

Process 0 listens on the port that JAX's coordinator uses afterwards. It names a host of another
attempt, and the number of hosts expected and seen when one is missing after a minute; JAX itself
would wait for minutes and name neither. The environment variables PRTS_ATTEMPT and PRTS_NONCE say
which attempt at the run a host belongs to.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from prts_jax.errors import Interrupted, UserError

SECONDS = 55.0
"""Longest wait for all hosts."""

_LINE_BYTES = 4096


@dataclass(frozen=True)
class Host:
    """A host: its name, its process of `hosts`, and its attempt at the run."""

    name: str
    process: int
    hosts: int
    attempt: int = 0
    nonce: str = ""

    @property
    def attempt_text(self) -> str:
        """The attempt as messages name it."""
        return f"attempt {self.attempt} ({self.nonce or 'no nonce'})"


def meet(address: str, port: int, me: Host, seconds: float = SECONDS) -> None:
    """Returns once all hosts of this attempt have met at process 0, at an address and TCP port.

    Raises:
      UserError: this host belongs to another attempt than the others.
      Interrupted: hosts are missing.
    """
    deadline = time.monotonic() + seconds
    if me.process == 0:
        with socket.create_server(("", port), backlog=max(me.hosts, 16)) as listener:
            _lead(listener, me, deadline)
    else:
        _join(address, port, me, deadline, seconds)


def _lead(listener: socket.socket, me: Host, deadline: float) -> None:
    present: dict[int, tuple[Host, socket.socket]] = {}
    with contextlib.ExitStack() as connections:
        while len(present) < me.hosts - 1:
            listener.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, me.hosts)) - present.keys())
                text = (
                    f"expected {me.hosts} hosts, {len(present) + 1} seen within a minute; missing: "
                    f"process {', '.join(map(str, missing))}"
                )
                _answer(present, 75, text)
                raise Interrupted(text) from None
            connections.enter_context(connection)
            other = _hello(connection)
            if other is None:
                continue
            if reason := _refusal(me, other, present):
                print(f"handshake: {reason}", file=sys.stderr, flush=True)
                _answer({0: (other, connection)}, 2, reason)
                if other.attempt > me.attempt:
                    _answer(present, 2, reason)
                    raise UserError(reason)
                continue
            present[other.process] = other, connection
        _answer(present, 0, "")


def _refusal(me: Host, other: Host, present: dict[int, tuple[Host, socket.socket]]) -> str:
    """Returns why a host may not join; "" where it may."""
    if (other.attempt, other.nonce) != (me.attempt, me.nonce):
        older, newer = (me, other) if other.attempt > me.attempt else (other, me)
        return (
            f"host {older.name} of {older.attempt_text} is refused: host {newer.name} runs "
            f"{newer.attempt_text}; delete the slice of {older.name}"
        )
    if other.hosts != me.hosts or not 0 < other.process < me.hosts:
        return (
            f"host {other.name} is process {other.process} of {other.hosts}, but {me.hosts} hosts "
            "are expected; its MEGASCALE variables may be stale: delete its slice"
        )
    first = present.get(other.process)
    if first and first[0].name != other.name:
        return f"hosts {first[0].name} and {other.name} are both process {other.process}"
    return ""


def _hello(connection: socket.socket) -> Host | None:
    """Reads what a host says of itself; None for anything else that connects."""
    connection.settimeout(5.0)
    try:
        return Host(**json.loads(_line(connection)))
    except (OSError, ValueError, TypeError):
        return None


def _line(connection: socket.socket) -> str:
    received = b""
    while not received.endswith(b"\n") and len(received) < _LINE_BYTES:
        part = connection.recv(_LINE_BYTES)
        if not part:
            break
        received += part
    return received.decode(errors="replace")


def _answer(hosts: dict[int, tuple[Host, socket.socket]], code: int, text: str) -> None:
    """Answers hosts and waits for them to close: the port must be free for JAX at once."""
    for _, connection in hosts.values():
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps({"code": code, "text": text}).encode() + b"\n")
            connection.settimeout(2.0)
            connection.recv(1)


def _join(address: str, port: int, me: Host, deadline: float, seconds: float) -> None:
    reason = "no connection"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((address, port), timeout=left) as connection:
                connection.sendall(json.dumps(asdict(me)).encode() + b"\n")
                connection.settimeout(left + 3.0)
                answer = json.loads(_line(connection))
                code, text = answer["code"], answer["text"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error) or reason
            time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
            continue
        if code == 0:
            return
        raise (UserError if code == 2 else Interrupted)(text)
    raise Interrupted(
        f"expected {me.hosts} hosts, process 0 at {address}:{port} does not answer process "
        f"{me.process} within {seconds:.0f} s ({reason}); it may not have booted, or the address "
        "is stale after a slice was replaced"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the handshake; see the module's first lines."""
    coordinator, hosts, process = argv
    address, _, port = coordinator.rpartition(":")
    attempt = int(os.environ.get("PRTS_ATTEMPT") or 0)
    name, nonce = (
        os.environ.get("PRTS_HOST", socket.gethostname()),
        os.environ.get("PRTS_NONCE", ""),
    )
    me = Host(name, int(process), int(hosts), attempt, nonce)
    try:
        meet(address, int(port), me)
    except (UserError, Interrupted) as error:
        print(f"handshake: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 75
    except OSError as error:
        print(f"handshake: {coordinator}: {error.strerror}", file=sys.stderr)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
