"""The start of several processes: what it checks before it waits for them."""

import pytest

from prts_jax.distributed import start_distributed
from prts_jax.errors import UserError


def test_one_host_starts_nothing() -> None:
    assert start_distributed() == (1, 0)


def test_a_missing_host_is_an_error() -> None:
    with pytest.raises(UserError, match=r"--processes: 2 expected, 1 joined"):
        start_distributed(processes=2)


def test_an_index_without_a_coordinator_is_refused() -> None:
    with pytest.raises(UserError, match="--process: only with --coordinator"):
        start_distributed(process=1)


@pytest.mark.parametrize(("processes", "process"), [(0, -1), (2, -1), (2, 2)])
def test_a_coordinator_needs_to_know_the_processes(processes: int, process: int) -> None:
    with pytest.raises(UserError, match=r"--coordinator: needs --processes=N"):
        start_distributed(coordinator="localhost:1234", processes=processes, process=process)


@pytest.mark.parametrize("address", ["localhost", ":8476", "host:", "host:port", "host:99999"])
def test_a_coordinator_without_host_or_port_is_refused(address):
    with pytest.raises(UserError, match=f"--coordinator={address}: is not HOST:PORT"):
        start_distributed(coordinator=address, processes=2, process=0)
