"""`prts generate`: streams text from a checkpoint's model."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import jax

from data_pipelines.chat.template import PLAIN
from prts_jax.cli import run
from prts_jax.cli.arguments import ADD_BOS_TOKEN, OneLineParser, add_model_flags, add_value_flags
from prts_jax.errors import UserError
from prts_jax.paths import as_path

TEXTS = {
    "prompt": ("TEXT", "text to continue"),
    "prompt_file": ("FILE", "a text file with the prompt; - is stdin"),
    "instruction": (
        "TEXT",
        "instead of a prompt: an instruction for a model fine-tuned on instructions",
    ),
    "system": ("TEXT", "system message (with --instruction)"),
}
"""Flag → metavar and help; the default is ""."""

NUMBERS = {
    "tokens": (
        100,
        "most tokens to generate (default: 100); prompt and text together are at most as long as "
        "a training row",
    ),
    "temperature": (0.0, "0 for the likeliest token (default); above 0 for draws"),
    "top_p": (1.0, "draw from the likeliest tokens with this total probability (default: 1, all)"),
    "seed": (0, "seed of the draws (default: 0)"),
}
"""Flag → default, whose type it has, and help."""


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    parser = OneLineParser(
        prog="prts generate",
        description="Continue a prompt with a checkpoint's model; prints tokens as they come.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="CKPT",
        help="a checkpoint's directory, or a run's workdir with an optional @step",
    )
    add_value_flags(parser, TEXTS, NUMBERS)
    add_model_flags(parser)
    parser.add_argument("--add_bos_token", action="store_true", help=ADD_BOS_TOKEN)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs `prts generate`; see `prts generate --help`."""
    arguments = parser().parse_args(argv)
    from prts_jax.evaluate.generate import Generator, Sampling
    from prts_jax.evaluate.loaded import load
    from prts_jax.evaluate.memory import out_of_memory
    from prts_jax.evaluate.tokenizer import tokenizer_of

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    if arguments.tokens < 1:
        raise UserError(f"--tokens={arguments.tokens}: must be at least 1")
    prompt = _prompt(arguments)
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError("prompt: holds bytes that are not UTF-8; convert it")
    loaded = load(arguments.checkpoint, arguments.dtype, weights=arguments.weights)
    tokenizer = tokenizer_of(loaded.path, loaded.lineage, arguments.tokenizer)
    ids = tokenizer.encode(prompt)
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    if arguments.add_bos_token or not ids:
        ids = begin + ids
    room = loaded.length - len(ids)
    if room < 1:
        raise UserError(
            f"prompt: has {len(ids)} tokens, and the model was trained on rows of {loaded.length}; "
            "shorten it"
        )
    if room < arguments.tokens:
        print(
            f"prts generate: at most {room} tokens, since the model was trained on rows of "
            f"{loaded.length}",
            file=sys.stderr,
        )
    began = time.monotonic()
    with jax.set_mesh(loaded.mesh), out_of_memory("give fewer --tokens or a shorter prompt"):
        generator = Generator(loaded.params, loaded.model, loaded.compute, tokenizer.pieces)
        rows = generator.stream([ids], min(room, arguments.tokens), tokenizer.ends, sampling)
        printer = _Printer(prompt, quiet=arguments.json)
        # An answer to an instruction is a text of its own, as in training.
        text_of = partial(tokenizer.continuation, [] if arguments.instruction else ids)
        tokens = _print_all((int(row[0]) for row in rows), tokenizer.ends, text_of, printer)
    seconds = time.monotonic() - began
    if arguments.json:
        text = text_of(tokens)
        print(json.dumps({"prompt": prompt, "text": text, "tokens": tokens, "seconds": seconds}))
    return 0


def _prompt(arguments: argparse.Namespace) -> str:
    text, file, instruction = arguments.prompt, arguments.prompt_file, arguments.instruction
    if sum(map(bool, (text, file, instruction))) != 1:
        raise UserError("--prompt, --prompt_file, --instruction: give one of them")
    if arguments.system and not instruction:
        raise UserError("--system: goes with --instruction")
    if instruction:
        return PLAIN.prompt(instruction, arguments.system)
    if not file:
        return str(text)
    try:
        return sys.stdin.read() if file == "-" else as_path(file).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt_file={file}: cannot be read as text ({error})") from error


def _print_all(
    stream: Iterable[int],
    stop: Collection[int],
    text_of: Callable[[Sequence[int]], str],
    printer: "_Printer",
) -> list[int]:
    """Prints tokens up to a stop token as they come and returns them."""
    tokens: list[int] = []
    for token in stream:
        if token in stop:
            break
        tokens.append(token)
        printer.update(text_of(tokens))
    printer.end(text_of(tokens))
    return tokens


class _Printer:
    """Prints a growing text; a character of several tokens waits for the last of them."""

    def __init__(self, prompt: str, quiet: bool) -> None:
        self._quiet, self._printed = quiet, ""
        self._print(prompt)

    def update(self, text: str) -> None:
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if whole.startswith(self._printed):
            self._print(whole[len(self._printed) :])
            self._printed = whole

    def end(self, text: str) -> None:
        self._print((text[len(self._printed) :] if text.startswith(self._printed) else "") + "\n")

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "generate"))
