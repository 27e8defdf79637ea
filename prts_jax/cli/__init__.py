"""The command line `prts COMMAND …`; each command is a module with `main(argv) -> exit code`."""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence

from prts_jax.errors import Interrupted, StorageError, UserError, one_line

COMMANDS = {
    "data": "prepare text: token stores from seqio tasks or folders, on one machine or many",
    "train": "train a model, resuming or growing what is there",
    "grow": "grow a checkpoint into a deeper or wider one",
    "convert": "models of Hugging Face and lit-gpt in, models for Hugging Face out",
    "inspect": "show what a checkpoint holds",
    "aot": "compile a config for TPUs without a TPU: memory, time, collectives",
    "plan": "when to grow, from what, and what it saves",
    "eval": "perplexity of a store or of text; benchmarks of lm-evaluation-harness",
    "generate": "continue a prompt",
    "report": "compare runs over tokens, FLOPs and time",
    "tpu": "create, set up, run on and delete Cloud TPU slices",
}

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str], name: str) -> int:
    """Runs a command; an error becomes an exit code and one line on standard error."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        return command(argv)
    except UserError as error:
        print(f"prts {name}: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (Interrupted, StorageError) as stopped:
        print(f"prts {name}: {one_line(str(stopped))}", file=sys.stderr)
        return EXIT_RESUMABLE
    except KeyboardInterrupt:
        print(f"prts {name}: interrupted; the same command starts it again", file=sys.stderr)
        return EXIT_FAILED


def usage() -> str:
    """Returns the text of `prts --help`."""
    lines = [f"  {name:<8} {summary}" for name, summary in COMMANDS.items()]
    return "usage: prts COMMAND [--help] …\n\ncommands:\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; entry point of the console script `prts`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else EXIT_USER_ERROR
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"prts: no command {name!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USER_ERROR
    module = importlib.import_module(f"prts_jax.cli.{name}")
    return run(module.main, rest, name)
