"""Commands end with the right exit code, and one line on standard error."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prts_jax.cli import run
from prts_jax.errors import Interrupted, StorageError, UserError


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("--target: exists"), 2, "prts grow: --target: exists\n"),
        (Interrupted("stopped by SIGTERM"), 75, "prts grow: stopped by SIGTERM\n"),
        (StorageError("disk: full"), 75, "prts grow: disk: full\n"),
        (
            KeyboardInterrupt(),
            1,
            "prts grow: interrupted; the same command starts it again\n",
        ),
    ],
)
def test_what_a_user_may_cause_ends_in_one_line(
    raised: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> int:
        raise raised

    assert run(command, [], "grow") == code
    assert capsys.readouterr() == ("", line)


def test_an_unexpected_error_is_one_line_that_names_the_file_of_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object) -> int:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(command, [], "grow") == 1
    (trace,) = tmp_path.iterdir()
    line = f"internal error: ZeroDivisionError: first line; the trace is in {trace}, please report"
    assert capsys.readouterr().err == f"prts grow: {line} it\n"
    assert "in command" in trace.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert run(command, [], "grow") == 1
    assert "first line (no trace is kept: No such file" in capsys.readouterr().err


def test_storage_that_fails_where_nobody_expects_it_can_be_retried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(error: OSError) -> int:
        def command(argv: object) -> int:
            raise error

        return run(command, [], "report")

    assert fail(OSError(errno.ENOSPC, "full", "a.html")) == 75
    assert "prts report: a.html: cannot be used (No space left" in capsys.readouterr().err
    assert fail(OSError("Forbidden: b/bucket/o")) == 75
    assert fail(OSError(errno.EROFS, "read-only", "a.html")) == 2
    assert fail(OSError(errno.ENOENT, "missing", "a.html")) == 1
    assert fail(OSError("a library's own error")) == 1


def test_messages_of_libraries_are_one_line_without_their_traceback() -> None:
    program = """
import logging, sys
from prts_jax.cli import run
def command(argv):
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("library").exception("retrying\\nafter 503")
    return 0
sys.exit(run(command, [], "x"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "retrying\\nafter 503\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_closes_the_output_ends_the_command_without_a_message(stream: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    program = f"""
import sys
from prts_jax.cli import run
def command(argv):
    for line in range(100_000):
        print(line, file=sys.{stream})
    return 0
sys.exit(run(command, [], "x"))
"""
    streams = {stream: writer, other: subprocess.PIPE}
    done = subprocess.run([sys.executable, "-c", program], text=True, **streams)
    os.close(writer)
    assert done.returncode == 141
    assert not (done.stdout or "") + (done.stderr or "")


def test_help_into_a_closed_pipe_is_quiet() -> None:
    command = f"({sys.executable} -m prts_jax.cli plan --help; echo $? >&2) | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr in ("141\n", "0\n")  # 0 where `true` ends after the text is written


def test_sigterm_while_a_run_starts_is_resumable() -> None:
    """The handler is there before JAX is imported."""
    program = """
import os, signal, sys
from prts_jax import cli
assert "jax" not in sys.modules
class Import:
    def find_spec(self, name, path=None, target=None):
        if name == "prts_jax.cli.train":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Import())
cli.main(["train", "--workdir=/tmp/never"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    line = "prts train: stopped by SIGTERM; the same command starts it again\n"
    assert (done.returncode, done.stderr) == (75, line)
