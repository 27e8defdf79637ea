"""JAX's cache of compiled programs, so that a restarted run does not compile again."""

import hashlib
import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from prts_jax.paths import as_path

NAME = "compilation_cache"
"""Directory of the cache in a run's workdir."""


def set_compilation_cache(choice: str, workdir: str) -> None:
    """Sets the directory of compiled programs; the variable JAX_COMPILATION_CACHE_DIR wins.

    Call it before a program is compiled. Only process 0 writes, all processes read; JAX warns and
    compiles where an entry cannot be read or written.

    Args:
      choice: `config.compute.compilation_cache`: "workdir", "off" or "", or a directory, local or gs://.
      workdir: directory of the run.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    directory = None
    if choice not in ("", "off"):
        path = as_path(workdir) / NAME if choice == "workdir" else as_path(choice)
        directory = str(path / _processor() if jax.default_backend() == "cpu" else path)
    jax.config.update("jax_compilation_cache_dir", directory)
    compilation_cache.reset_cache()  # it remembers the directory of an earlier run


def _processor() -> str:
    """Returns a digest of the processor's features: code for another one may crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "cpu-" + hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()[:12]
