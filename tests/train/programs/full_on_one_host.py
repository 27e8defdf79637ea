"""One of two processes that train together; the second's disk is full for some steps.

Arguments: port of the coordinator, this process's number, arguments of `prts train`.
"""

import resource
import sys

import pytest

from prts_jax import cli
from prts_jax.train import saving
from tests.train.interrupting import call_during_step


def main(port: str, number: str, arguments: list[str]) -> int:
    patch, limit = pytest.MonkeyPatch(), resource.RLIMIT_FSIZE
    soft, hard = resource.getrlimit(limit)
    patch.setattr(saving, "FIRST_RETRY_SECONDS", 0.5)
    if number == "1":
        call_during_step(patch, 1, lambda: resource.setrlimit(limit, (100, hard)))
        call_during_step(patch, 4, lambda: resource.setrlimit(limit, (soft, hard)))
    joined = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={number}"]
    return cli.main(["train", *arguments, *joined])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
