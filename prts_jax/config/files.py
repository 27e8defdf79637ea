"""Inheritance between config files."""

import runpy
from pathlib import Path

import ml_collections

from prts_jax.errors import UserError


def inherit(spec: str, beside: str) -> ml_collections.ConfigDict:
    """Returns the config of another config file, for this one to change and return.

    Args:
      spec: "FILE.py" or "FILE.py:argument", relative to the folder of `beside`.
      beside: `__file__` of the file that inherits.

    Raises:
      UserError: the file does not exist or has no `get_config`.

    >>> c = inherit("../quickstart.py:grown", __file__)  # doctest: +SKIP
    """
    name, _, argument = spec.partition(":")
    path = (Path(beside).parent / name).resolve()
    if not path.is_file():
        raise UserError(f"{beside}: inherits from {path}, which does not exist")
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise UserError(f"{beside}: inherits from {path}, which has no function get_config")
    config: ml_collections.ConfigDict = get_config(argument) if argument else get_config()
    return config
