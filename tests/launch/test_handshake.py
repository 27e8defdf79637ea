"""The handshake of hosts, in threads on local ports."""

import contextlib
import socket
import threading

import pytest

from prts_jax.errors import Interrupted, UserError
from prts_jax.launch import handshake
from prts_jax.launch.handshake import Host


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def meet(port: int, *hosts: Host, seconds: float = 1.5) -> dict[str, BaseException | None]:
    """Lets hosts meet; host → its error."""
    outcome: dict[str, BaseException | None] = {}

    def one(host: Host) -> None:
        try:
            handshake.meet("127.0.0.1", port, host, seconds)
            outcome[host.name] = None
        except (UserError, Interrupted) as error:
            outcome[host.name] = error

    threads = [threading.Thread(target=one, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def host(process: int, attempt: int = 2, nonce: str = "n", hosts: int = 3, name: str = "") -> Host:
    return Host(name or f"w{process}", process, hosts, attempt, nonce)


def test_all_hosts_of_an_attempt_meet_and_leave_the_port_free(port):
    assert meet(port, host(2), host(0), host(1), seconds=20) == {"w0": None, "w1": None, "w2": None}
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_missing_host_is_counted_and_named(port):
    outcome = meet(port, host(0), host(1))
    for error in outcome.values():
        assert isinstance(error, Interrupted)
        assert "expected 3 hosts, 2 seen" in str(error)
        assert "missing: process 2" in str(error)


def test_a_missing_process_0_is_named(port):
    (error,) = meet(port, host(1), seconds=0.5).values()
    assert isinstance(error, Interrupted)
    assert "expected 3 hosts" in str(error)
    assert f"127.0.0.1:{port}" in str(error)


@pytest.mark.parametrize("old", [{"attempt": 1}, {"nonce": "other"}])
def test_a_host_of_another_attempt_is_refused_by_name_and_does_not_count(port, old):
    outcome = meet(port, host(0, hosts=2), host(1, hosts=2, name="old-host", **old))
    assert isinstance(outcome["old-host"], UserError)
    assert "host old-host of attempt" in str(outcome["old-host"])
    assert "w0 runs attempt 2 (n)" in str(outcome["old-host"])
    assert "expected 2 hosts, 1 seen" in str(outcome["w0"])


def test_an_outdated_process_0_is_told_so(port):
    outcome = meet(port, host(0, attempt=1, name="old"), host(1))
    assert all(isinstance(error, UserError) for error in outcome.values())
    assert "old of attempt 1 (n) is refused" in str(outcome["old"])


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"name": "twin"}, "both process 1"),
        ({"hosts": 9, "name": "stale"}, "MEGASCALE"),
    ],
)
def test_hosts_that_contradict_each_other_are_named(port, second, named):
    outcome = meet(port, host(0), host(1), host(1, **second))
    texts = [str(error) for error in outcome.values()]
    assert any(named in text for text in texts), texts


def test_strangers_on_the_port_are_ignored(port):
    def knock() -> None:
        for text in (b"GET / HTTP/1.1\r\n\n", b"[]\n", b""):
            address = ("127.0.0.1", port)
            with contextlib.suppress(OSError), socket.create_connection(address, 5) as stranger:
                stranger.sendall(text)

    strangers = threading.Thread(target=knock)
    strangers.start()
    assert set(meet(port, host(0, hosts=2), host(1, hosts=2), seconds=20).values()) == {None}
    strangers.join()


@pytest.mark.parametrize("answer", [b"[]\n", b"{}\n", b"HTTP/1.1 400\n"])
def test_a_stranger_in_place_of_process_0_is_no_answer(port, answer):
    def serve(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        (error,) = meet(port, host(1), seconds=0.3).values()
        server.shutdown(socket.SHUT_RDWR)
    assert "does not answer" in str(error)
