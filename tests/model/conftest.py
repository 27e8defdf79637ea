"""Programs that need devices of their own, each in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent / "programs"

RunProgram = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def run_program() -> RunProgram:
    """Runs `programs/NAME.py` and returns the JSON object that it prints.

    `run_program(name, devices=1, env=None, timeout=600)`: `devices` virtual CPU devices, `env` laid
    over the tests' environment, `timeout` in seconds.
    """

    def run(
        name: str, devices: int = 1, env: Mapping[str, str] | None = None, timeout: float = 600
    ) -> dict[str, Any]:
        process = subprocess.run(
            [sys.executable, PROGRAMS / f"{name}.py"],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | dict(env or {}),
            cwd=PROGRAMS.parents[2],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-6000:]
        report: dict[str, Any] = json.loads(process.stdout)
        return report

    return run
