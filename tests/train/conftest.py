"""Stores and runs that the tests of the trainer share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from prts_jax.config import RunConfig
from prts_jax.train.loop import train
from tests.train import tiny


class Stores(NamedTuple):
    """Directories of token stores."""

    train: str
    validation: str

    def flags(self) -> list[str]:
        """Arguments of `prts train` for the tiny run on these stores."""
        return [
            "--config=tests/train/tiny.py",
            f"--config.data.train={self.train}",
            f"--config.data.validation={self.validation}",
        ]


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    folder = tmp_path_factory.mktemp("stores")
    built = [
        tiny.write_store(folder / name, tokens, seed)
        for name, tokens, seed in (("train", 4000, 0), ("validation", 500, 1))
    ]
    return Stores(*(str(store.directory) for store in built))


class BaseRun(NamedTuple):
    """A finished run and its config."""

    workdir: Path
    config: RunConfig


@pytest.fixture(scope="session")
def base(stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> BaseRun:
    """Six steps of the tiny model, made once; tests read it and never write to it."""
    config = tiny.run_config(data__train=stores.train, data__validation=stores.validation)
    workdir = tmp_path_factory.mktemp("runs") / "base"
    train(config, str(workdir))
    return BaseRun(workdir, config)


@pytest.fixture
def configure(stores: Stores) -> Callable[..., RunConfig]:
    """`configure(train__steps=3)`: the tiny run's config on the shared stores, with changes."""

    def make(**changes: Any) -> RunConfig:
        paths = {"data__train": stores.train, "data__validation": stores.validation}
        return tiny.run_config(**(paths | changes))

    return make


@pytest.fixture
def run(configure: Callable[..., RunConfig]) -> Callable[..., list[dict[str, Any]]]:
    """`run(workdir, allow_change=(), **changes)` trains here and returns the metrics' lines."""

    def run_here(
        workdir: Path, allow_change: tuple[str, ...] = (), **changes: Any
    ) -> list[dict[str, Any]]:
        train(configure(**changes), str(workdir), allow_change)
        return tiny.read_lines(workdir)

    return run_here
