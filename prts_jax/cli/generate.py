"""`prts generate`: text from a checkpoint, as it is made."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import jax

from data_pipelines.chat.template import PLAIN
from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser, add_model_flags
from prts_jax.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Returns the command's argument parser."""
    made = OneLineParser(
        prog="prts generate",
        description="Continue a prompt with a checkpoint's model; prints tokens as they are made.",
    )
    made.add_argument(
        "--checkpoint",
        required=True,
        metavar="CKPT",
        help="a checkpoint's directory, or a run's workdir with an optional @step",
    )
    made.add_argument("--prompt", default="", metavar="TEXT", help="what is continued")
    made.add_argument(
        "--prompt_file", default="", metavar="FILE", help="a text file with the prompt; - is stdin"
    )
    made.add_argument(
        "--instruction",
        default="",
        metavar="TEXT",
        help="in place of a prompt: what a model fine-tuned on instructions is asked",
    )
    made.add_argument(
        "--system", default="", metavar="TEXT", help="what it is told before (with --instruction)"
    )
    made.add_argument(
        "--tokens",
        type=int,
        default=100,
        metavar="N",
        help="tokens to generate at most (default: 100); prompt and text together are no longer "
        "than what the model was trained on",
    )
    made.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token (default); above 0 draws",
    )
    made.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens of this probability together (default: 1, all)",
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    add_model_flags(made)
    made.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs `prts generate`; see `prts generate --help`.

    Raises:
      UserError: no such checkpoint, no tokenizer, flags outside their ranges, or a prompt that is
        longer than what the model was trained on.
    """
    arguments = parser().parse_args(argv)
    from prts_jax.evaluate.generate import Generator, Sampling
    from prts_jax.evaluate.loaded import load
    from prts_jax.evaluate.text import tokenizer_of

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    if arguments.tokens < 1:
        raise UserError(f"--tokens={arguments.tokens}: must be at least 1")
    prompt = _prompt(arguments)
    loaded = load(arguments.checkpoint, arguments.dtype)
    tokenizer = tokenizer_of(loaded.path, loaded.lineage, arguments.tokenizer)
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.bos is not None:
        ids = [tokenizer.bos]
    room = loaded.length - len(ids)
    if room < 1:
        raise UserError(
            f"prompt: has {len(ids)} tokens, and the model was trained on rows of {loaded.length}; "
            "shorten it"
        )
    if room < arguments.tokens:
        print(
            f"prts generate: {room} tokens at most: the model was trained on rows of "
            f"{loaded.length}",
            file=sys.stderr,
        )
    stop = set() if tokenizer.eos is None else {tokenizer.eos}
    began = time.monotonic()
    with jax.set_mesh(loaded.mesh):
        rows = Generator(loaded.params, loaded.model, loaded.compute).stream(
            [ids], min(room, arguments.tokens), stop, sampling
        )
        shown = _Shown(prompt, quiet=arguments.json)
        made = _follow((int(row[0]) for row in rows), stop, tokenizer.decode, shown)
    seconds = time.monotonic() - began
    if arguments.json:
        text = tokenizer.decode(made)
        print(json.dumps({"prompt": prompt, "text": text, "tokens": made, "seconds": seconds}))
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
        return sys.stdin.read() if file == "-" else Path(file).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt_file={file}: cannot be read as text ({error})") from error


def _follow(
    tokens: Iterable[int],
    stop: Collection[int],
    decode: Callable[[Sequence[int]], str],
    shown: "_Shown",
) -> list[int]:
    made: list[int] = []
    for token in tokens:
        if token in stop:
            break
        made.append(token)
        shown.update(decode(made))
    shown.end(decode(made))
    return made


class _Shown:
    """What of the text is on the terminal; a character of several tokens waits for the last."""

    def __init__(self, prompt: str, quiet: bool) -> None:
        self._quiet, self._shown = quiet, ""
        self._print(prompt)

    def update(self, text: str) -> None:
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        if whole.startswith(self._shown):
            self._print(whole[len(self._shown) :])
            self._shown = whole

    def end(self, text: str) -> None:
        self._print(text[len(self._shown) :] + "\n")

    def _print(self, text: str) -> None:
        if not self._quiet:
            print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "generate"))
