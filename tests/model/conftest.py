"""Programs that need devices of their own, each in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).resolve().parents[2]

RunProgram = Callable[..., dict[str, Any]]


def start(
    name: str, *args: str, devices: int, env: Mapping[str, str] | None
) -> subprocess.Popen[str]:
    # A program's own folder is where Python looks first: it shall test this checkout.
    own = {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, PROGRAMS / f"{name}.py", *args],
        env=os.environ | own | dict(env or {}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, stderr[-6000:]
    # Gloo prints what it connects before that.
    report: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return report


@pytest.fixture(scope="session")
def run_program() -> RunProgram:
    """Runs `programs/NAME.py` and returns the JSON object that it prints.

    `run_program(name, devices=1, env=None, timeout=600)`: `devices` virtual CPU devices, `env` laid
    over the tests' environment, `timeout` in seconds.
    """

    def run(
        name: str, devices: int = 1, env: Mapping[str, str] | None = None, timeout: float = 600
    ) -> dict[str, Any]:
        return finish(start(name, devices=devices, env=env), timeout)

    return run


@pytest.fixture(scope="session")
def run_joined_programs() -> Callable[..., list[dict[str, Any]]]:
    """Runs `programs/NAME.py COORDINATOR PROCESSES PROCESS` for each of several processes.

    `run_joined_programs(name, processes=2, devices=4, timeout=600)`: `devices` of each process.
    """

    def run(
        name: str, processes: int = 2, devices: int = 4, timeout: float = 600
    ) -> list[dict[str, Any]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            coordinator = f"localhost:{free.getsockname()[1]}"
        started = [
            start(name, coordinator, str(processes), str(index), devices=devices, env=None)
            for index in range(processes)
        ]
        try:
            return [finish(process, timeout) for process in started]
        finally:
            for process in started:
                process.kill()

    return run
