"""`--config=FILE.py[:arg]` and `--config.a.b=value`, as ml_collections reads them."""

import contextlib
import io
import os
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from prts_jax import config as config_lib
from prts_jax.errors import UserError

HELP = (
    "--config=FILE.py[:arg]  the configuration; --config.a.b=value changes one of its keys "
    "(keys and defaults: prts_jax/config.py, or --print_config)"
)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts the configuration's flags from a command's own.

    Returns:
      (arguments that begin with --config, the others).
    """
    ours, others = [], []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(("--config=", "--config.")) and argument != "--config":
            others.append(argument)
            continue
        ours.append(argument)
        if "=" not in argument and rest and not rest[0].startswith("--"):
            ours[-1] += "=" + rest.pop(0)
    return ours, others


def load(argv: Sequence[str]) -> config_lib.RunConfig:
    """Reads a config file, applies overrides and resolves the result.

    Args:
      argv: the arguments that `split` returned first.

    Raises:
      UserError: no or an unreadable file, an unknown key, a wrong type or combination.
    """
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if not files:
        raise UserError("--config: is missing; give --config=FILE.py, for example one of configs/")
    path = files[-1].split(":", 1)[0]
    if not os.path.isfile(path):
        raise UserError(f"--config: there is no file {path}; see configs/ for those that ship")
    for argument in argv:
        if argument.startswith("--config."):
            _check_key(argument)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    try:
        # absl prints what it makes of a bad value; the one line below says it instead.
        with contextlib.redirect_stderr(io.StringIO()):
            values(["prts", *argv], known_only=False)
        loaded = values.config
    except UserError:
        raise
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, ImportError) as error:
        raise UserError(f"--config: {path}: {_one_line(error)}") from error
    except SyntaxError as error:
        raise UserError(f"--config: {path}, line {error.lineno}: {error.msg}") from error
    return config_lib.resolve(loaded)


def load_file(spec: str) -> config_lib.RunConfig:
    """Reads "FILE.py[:arg]" without overrides. Raises `UserError` as `load` does."""
    return load([f"--config={spec}"])


def _check_key(argument: str) -> None:
    if "=" not in argument:
        raise UserError(f"{argument}: has no value; write {argument}=VALUE")
    key = argument.removeprefix("--config.").split("=", 1)[0]
    node: object = config_lib.RunConfig()
    walked = ""
    for name in key.split("."):
        known = list(vars(node)) if hasattr(node, "__dataclass_fields__") else []
        if name not in known:
            hint = config_lib.nearest(name, known) if known else "it is not a section"
            raise UserError(f"--config{walked}.{name}: no such key; {hint}")
        node, walked = getattr(node, name), f"{walked}.{name}"


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    return " ".join(text.split())
