"""Compiled programs are kept in the workdir, at a path, or not at all."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from prts_jax.train.compilation_cache import set_compilation_cache


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes the tests' shared cache away for one test."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_something(factor: float) -> None:
    jax.jit(lambda x: jnp.sin(x) * factor)(1.0)


@pytest.mark.parametrize("choice", ["workdir", "path"])
def test_programs_are_kept_in_the_workdir_or_at_a_path(tmp_path: Path, choice: str) -> None:
    other = tmp_path / "shared"
    set_compilation_cache("workdir" if choice == "workdir" else str(other), str(tmp_path / "run"))
    compile_something(2.5)
    folder = tmp_path / "run" / "compilation_cache" if choice == "workdir" else other
    assert any(path.is_file() for path in folder.rglob("*"))


def test_a_second_run_of_a_process_has_a_cache_of_its_own(tmp_path: Path) -> None:
    for run in ("one", "two"):
        set_compilation_cache("workdir", str(tmp_path / run))
        compile_something(3.5)
        assert (tmp_path / run / "compilation_cache").exists()


def test_off_keeps_nothing(tmp_path: Path) -> None:
    set_compilation_cache("off", str(tmp_path / "run"))
    compile_something(4.5)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    set_compilation_cache("workdir", str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == before
