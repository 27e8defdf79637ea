"""The argument parser and flags that several commands share."""

import argparse
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from prts_jax.errors import UserError

ADD_BOS_TOKEN = "put the tokenizer's start token before every text, as Llama 3 expects"
"""Help of --add_bos_token."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser with one-line errors and without abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        """Takes the options of `argparse.ArgumentParser`."""
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses like argparse, but rejects `--flag=--`, which argparse reads as an empty list.

        Rejects null characters as well, which no path can hold, and numbers that are not finite.
        """
        for argument in args or ():
            if "\0" in argument:
                self.error(f"argument {argument}: holds a null character")
            if argument.endswith("=--"):
                self.error(f"argument {argument}: '--' is no value")
        known, rest = super().parse_known_args(args, namespace)
        for name, value in vars(known).items():
            if isinstance(value, float) and not math.isfinite(value):
                self.error(f"argument --{name}: {value} is not a finite number")
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` with the message that argparse would print."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def add_value_flags(
    parser: argparse.ArgumentParser,
    texts: Mapping[str, tuple[str, str]],
    numbers: Mapping[str, tuple[float, str]],
) -> None:
    """Adds optional flags from tables.

    `texts` has a flag's metavar and help, and its default is ""; `numbers` its default, whose type
    it has, and help.
    """
    for name, (metavar, text) in texts.items():
        parser.add_argument(f"--{name}", default="", metavar=metavar, help=text)
    for name, (number, text) in numbers.items():
        parser.add_argument(f"--{name}", type=type(number), default=number, metavar="N", help=text)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype, --weights and --tokenizer, for commands that run the model of a checkpoint."""
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of activations and matrix products (default: bfloat16)",
    )
    add_weights_flag(parser)
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="PATH",
        help="folder, tokenizer.json or tokenizer.model (default: the checkpoint's own)",
    )


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --weights, for commands that read the weights of a checkpoint."""
    parser.add_argument(
        "--weights",
        choices=("params", "ema"),
        default="params",
        help="of the checkpoint: the parameters (default), or their moving average "
        "(config.optimizer.ema)",
    )


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prts_jax.distributed.start_distributed` as flags."""
    parser.add_argument(
        "--multihost",
        action="store_true",
        help="join the other hosts of this TPU slice; every host starts the same command",
    )
    parser.add_argument(
        "--coordinator", default="", help="HOST:PORT of process 0, where --multihost finds none"
    )
    parser.add_argument("--processes", type=int, default=0, help="processes expected")
    parser.add_argument("--process", type=int, default=-1, help="index of this process")
