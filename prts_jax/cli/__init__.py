"""The command line `prts COMMAND …`; each command is a module with `main(argv) -> exit code`.

`main` raises a UserError for any mistake of the user; `run` makes it one line and exit code 2.
"""

import contextlib
import importlib
import logging
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence

from prts_jax.errors import (
    DivergedError,
    Interrupted,
    StorageError,
    UserError,
    first_line,
    one_line,
    storage_failure,
)

COMMANDS = {
    "data": "prepare text: token stores from seqio tasks or folders, on one machine or many",
    "train": "train a model, resuming or growing what is there",
    "grow": "grow a checkpoint into a deeper or wider one",
    "convert": "models of Hugging Face and lit-gpt in, models for Hugging Face out",
    "inspect": "show what a checkpoint holds",
    "aot": "compile a config for TPUs without a TPU: memory, time, collectives",
    "study": "train a grid of runs and say whether growth pays, with intervals",
    "plan": "when to grow, from what, and what it saves",
    "eval": "perplexity of a store or of text; benchmarks of lm-evaluation-harness",
    "generate": "continue a prompt",
    "report": "compare runs over tokens, FLOPs and time",
    "tpu": "create, set up, run on and delete Cloud TPU slices",
}

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_RESUMABLE = 75
EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str], name: str) -> int:
    """Runs a command; an error becomes an exit code and one line on standard error.

    An error that no code expects is an internal error: its trace goes to a file. A reader that
    closes the output (`prts … | head`) ends the command without a message.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # These log errors that they also raise, and asyncio those of Orbax's other threads.
    for library in ("absl", "asyncio", "gcsfs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    threading.excepthook = lambda failed: _say(name, _internal(name, failed.exc_value))
    try:
        try:
            return command(argv)
        finally:
            sys.stdout.flush()
    except UserError as error:
        return _end(name, str(error), EXIT_USER_ERROR)
    except (Interrupted, StorageError) as stopped:
        return _end(name, str(stopped), EXIT_RESUMABLE)
    except DivergedError as error:
        return _end(name, str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _end(name, "interrupted; the same command starts it again", EXIT_FAILED)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return EXIT_CLOSED_PIPE
        if (expected := storage_failure(error)) is None:
            return _end(name, _internal(name, error), EXIT_FAILED)
        code = EXIT_USER_ERROR if isinstance(expected, UserError) else EXIT_RESUMABLE
        return _end(name, str(expected), code)


class _OneLineFormatter(logging.Formatter):
    """Formats a library's message as one line, without the traceback that gcsfs and others add."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(record.getMessage())


def _end(name: str, message: str, code: int) -> int:
    _say(name, message)
    return code


def _say(name: str, message: str) -> None:
    with contextlib.suppress(OSError):  # a closed pipe, or a log on the full disk
        print(f"{f'prts {name}'.strip()}: {one_line(message)}", file=sys.stderr, flush=True)


def _internal(name: str, error: BaseException | None) -> str:
    """Writes the trace of an unexpected error to a file and returns the message that names it."""
    summary = f"{type(error).__name__}: {first_line(error)}" if error else "unknown error"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"prts-{name}-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError as unwritable:
        return f"internal error: {summary} (no trace is kept: {unwritable.strerror})"
    return f"internal error: {summary}; the trace is in {file.name}, please report it"


def _reader_is_gone() -> bool:
    """Whether standard output or error is a closed pipe; then drops what is still to be written."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if poll.poll(0):
                gone = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


def _stop_at_once(name: str) -> None:
    """Ends the process with the code of a resumable run if SIGTERM comes while it starts.

    `prts_jax.train.stopping` replaces this handler once there is a state to save.
    """

    def stop(number: int, frame: object) -> None:
        _say(name, "stopped by SIGTERM; the same command starts it again")
        os._exit(EXIT_RESUMABLE)

    signal.signal(signal.SIGTERM, stop)


def usage() -> str:
    """Returns the text of `prts --help`."""
    lines = [f"  {name:<8} {summary}" for name, summary in COMMANDS.items()]
    return "usage: prts COMMAND [--help] …\n\ncommands:\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; entry point of the console script `prts`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name, *rest = arguments or [""]
    return run(_command(name), rest, name if name in COMMANDS else "")


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """Returns the function of a command, which imports the command's module when it is called."""

    def command(argv: Sequence[str]) -> int:
        if name in ("", "-h", "--help"):
            print(usage())
            return 0 if name else EXIT_USER_ERROR
        if name not in COMMANDS:
            raise UserError(f"no command {name!r}; one of {', '.join(COMMANDS)}")
        if name == "train":
            _stop_at_once(name)
        module = importlib.import_module(f"prts_jax.cli.{name}")
        code: int = module.main(argv)
        return code

    return command
