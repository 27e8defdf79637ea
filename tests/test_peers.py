"""Processes that watch one another through JAX's coordination service."""

import pytest

from prts_jax import peers


class Service:
    """A coordination service in which the keys of other processes stand still."""

    def __init__(self, *others: int) -> None:
        self.keys = {f"prts_jax/alive/{process}": "7" for process in others}
        self.fails = False

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        if self.fails:
            raise RuntimeError("UNAVAILABLE: Socket closed")
        self.keys[key] = value

    def key_value_dir_get(self, directory: str) -> list[tuple[str, str]]:
        return list(self.keys.items())


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the times; the end of the process becomes an exception with the exit code."""

    def exit_with(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(peers, "DEAD_SECONDS", 0.1)
    monkeypatch.setattr(peers.os, "_exit", exit_with)


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (False, "process 2 of 3 does not answer for 0 s"),
        (True, "process 0 of 3 does not answer"),
    ],
)
def test_a_dead_process_is_named_in_one_line(watched, capsys, fails, reason):
    service = Service(2)
    service.fails = fails
    with pytest.raises(SystemExit, match="75"):
        peers._watch(service, 3, 1)
    assert capsys.readouterr().err == (
        f"prts train: {reason}; start the same command on all hosts, the run resumes from its last "
        "checkpoint\n"
    )


def test_the_watch_ends_where_a_process_has_left(watched, capsys):
    service = Service()
    peers.leave(service, 2)
    peers._watch(service, 3, 1)
    assert not capsys.readouterr().err
