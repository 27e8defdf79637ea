"""Flags of the config: `--config=FILE.py[:arg]` and `--config.a.b=value` (ml_collections)."""

import json
import os
import re
import runpy
import traceback
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from prts_jax import config as config_lib
from prts_jax.errors import UserError

HELP = (
    "--config=FILE.py[:arg]  the configuration, or FILE.json, such as the config.json of a run; "
    "--config.a.b=value changes one of its keys "
    "(keys and defaults: prts_jax/config/schema.py, or --print_config)"
)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command's arguments into those that start with --config, and the others."""
    config_arguments, others = [], []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(("--config=", "--config.")) and argument != "--config":
            others.append(argument)
            continue
        config_arguments.append(argument)
        if "=" not in argument and rest and not rest[0].startswith("--"):
            config_arguments[-1] += "=" + rest.pop(0)
    return config_arguments, others


def load(argv: Sequence[str]) -> config_lib.RunConfig:
    """Reads a config file (FILE.py[:arg] or FILE.json), applies overrides, resolves the result.

    Raises:
      UserError: the file is missing or unreadable, a key is unknown, or a type or combination of
        values is invalid.
    """
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if not files:
        raise UserError("--config: is missing; give --config=FILE.py, for example one of configs/")
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    loaded = _run_file(files[-1])
    config_lib.from_dict(config_lib.RunConfig, loaded)  # names what the file itself gets wrong
    _add_missing(loaded, config_lib.default_config())
    for argument in overrides:
        _check_key(argument, loaded)
    values = flags.FlagValues()
    arguments = ["prts", *overrides]
    config_flags.DEFINE_config_dict("config", loaded, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)  # sets the overridden keys of `loaded`
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(_one_line(error)) from error
    return config_lib.resolve(loaded)


def _run_file(spec: str) -> ConfigDict:
    path, _, argument = spec.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"--config: there is no file {path}; see configs/ for those that ship")
    if path.endswith(".json"):
        return _read_json(path)
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"--config: {path} has no function get_config; see configs/")
        loaded = get_config(argument) if argument else get_config()
        if not isinstance(loaded, ConfigDict):
            raise UserError("get_config returns no ConfigDict; return what default_config() made")
        return loaded
    except UserError as error:
        raise UserError(f"--config={spec}: {error}") from error
    except SyntaxError as error:
        where = path if error.lineno is None else f"{path}, line {error.lineno}"
        raise UserError(f"--config: {where}: {error.msg}") from error
    # A config file may raise anything; an uncaught SystemExit would set the command's exit code.
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        # Empty if the file cannot be read or its get_config takes other arguments.
        lines = [f"line {frame.lineno}: " for frame in frames if frame.filename == path]
        exits = "it ends the command; return a config instead, or raise ValueError"
        reason = exits if isinstance(error, SystemExit) else _one_line(error)
        raise UserError(f"--config={spec}: {''.join(lines[-1:])}{reason}") from error


def _read_json(path: str) -> ConfigDict:
    """Returns a config that `--print_config` printed or a run wrote as `config.json`."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return ConfigDict(values)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config={path}: cannot be read ({_one_line(error)})") from error


def _add_missing(section: ConfigDict, defaults: ConfigDict) -> None:
    """Adds the keys that a config file leaves out: ml_collections overrides existing keys only."""
    with section.unlocked():
        for key, default in defaults.items():
            if key not in section:
                section[key] = default
            elif isinstance(default, ConfigDict):
                _add_missing(section[key], default)


def load_file(spec: str) -> config_lib.RunConfig:
    """Reads "FILE.py[:arg]" without overrides. Raises `UserError` as `load` does."""
    return load([f"--config={spec}"])


def _check_key(argument: str, loaded: ConfigDict) -> None:
    if "=" not in argument:
        raise UserError(f"{argument}: has no value; write {argument}=VALUE")
    key = argument.removeprefix("--config.").split("=", 1)[0]
    node: object = config_lib.RunConfig()
    walked = ""
    for name in key.split("."):
        if walked == ".growth" and name.startswith("stages"):
            _check_stage_key(argument, loaded)
            return
        known = list(vars(node)) if hasattr(node, "__dataclass_fields__") else []
        if name not in known:
            hint = config_lib.nearest(name, known) if known else "it is not a section"
            raise UserError(f"--config{walked}.{name}: no such key; {hint}")
        node, walked = getattr(node, name), f"{walked}.{name}"


def _check_stage_key(argument: str, loaded: ConfigDict) -> None:
    """Checks that the file's stage has the overridden key; ml_collections cannot add keys."""
    key = argument.removeprefix("--config.growth.").split("=", 1)[0]
    listed = re.fullmatch(r"stages\[(\d+)\]\.(.+)", key)
    stages = loaded.growth.stages
    if not listed:
        raise UserError(f"{argument}: stages are listed in the file; name one, stages[0].steps=10")
    if int(listed[1]) >= len(stages):
        raise UserError(f"{argument}: the file has {len(stages)} stages, counted from 0")
    node = stages[int(listed[1])]
    for name in listed[2].split("."):
        if not isinstance(node, Mapping) or name not in node:
            raise UserError(f"{argument}: the file's stage names no such key; add it there")
        node = node[name]


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else type(error).__name__
    # Removes the list of all keys of the section; ml_collections names the closest one after it.
    text = re.sub(r'Other fields present: ".*}"', "", text.replace("\\n", " "), flags=re.DOTALL)
    text = " ".join(text.split())
    # A KeyError quotes its whole text; quotes around single words are kept.
    return text[1:-1] if re.fullmatch("'[^']*'", text) else text
