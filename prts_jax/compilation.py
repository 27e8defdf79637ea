"""Compilation with the XLA options of a config, in step with the other processes."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from prts_jax.errors import UserError, first_line


def compiler_options(flags: str, backend: str) -> dict[str, str]:
    """Returns XLA's options of `config.compute.tpu_flags`, name → value; {} on other backends.

    Raises:
      UserError: an entry is not NAME=VALUE.
    """
    options = {}
    for entry in filter(None, (part.strip() for part in flags.split(","))):
        name, equals, value = entry.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise UserError(
                f"config.compute.tpu_flags: {entry!r} is not NAME=VALUE; write for example "
                "xla_tpu_scoped_vmem_limit_kib=65536"
            )
        options[name] = value
    return options if backend == "tpu" else {}


def compile_together(
    function: jax.stages.Wrapped, *arguments: Any, tpu_flags: str = ""
) -> jax.stages.Compiled:
    """Compiles a jitted function for these arguments; every process waits for the slowest.

    Processes compile at their own pace, and a collective does not wait long for one that is late.

    Raises:
      UserError: the compiler does not know one of the options.
    """
    options = compiler_options(tpu_flags, jax.default_backend())
    compiled = compile_lowered(function.lower(*arguments), options)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("prts_jax:compiled")
    return compiled


def compile_lowered(lowered: jax.stages.Lowered, options: Mapping[str, str]) -> jax.stages.Compiled:
    """Compiles a lowered function with options of XLA.

    Raises:
      UserError: XLA does not know one of the options.
    """
    try:
        return lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if any(name in str(error) for name in options) and "No such" in str(error):
            raise UserError(
                f"config.compute.tpu_flags: {first_line(error)}; remove the flag, or choose a "
                "version of libtpu that knows it"
            ) from error
        raise
