"""The trainer of a run on several hosts as a child: signals, exit codes and held messages."""

import subprocess
import sys

import pytest

ABORT = r"""
F1129 02:46:37.070314    8977 client.h:80] Terminating process because the service detected errors
/job:jax_worker/task:3
*** Check failure stack trace: ***
    @     0x7f0c29040634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""


def start(program: str) -> subprocess.Popen[str]:
    """Starts a process that splits; its child runs the program."""
    head = "import os, signal, sys, time\nfrom prts_jax.cli.guard import guard\ncode = guard()\n"
    parent = "if code is not None: sys.exit(code)\n"
    tail = "say = lambda text: print(text, file=sys.stderr, flush=True)\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + parent + tail + program],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("program", "code", "error"),
    [
        pytest.param("say('a'); sys.exit(3)", 3, "a\n", id="an exit code"),
        pytest.param(
            f"say('a'); say({ABORT!r}.strip()); os.abort()",
            75,
            "a\nprts train: process 3 does not answer; start the same command on all hosts, the "
            "run resumes from its last checkpoint\n",
            id="JAX's abort",
        ),
        pytest.param(
            f"say({ABORT!r}.strip()); say('prts train: process 3 …'); os._exit(75)",
            75,
            "prts train: process 3 …\n",
            id="a named process",
        ),
        pytest.param(
            "say('E1129 02:46:37.07 1 coordination_service_agent.cc:9] x'); sys.exit(1)",
            1,
            "E1129 02:46:37.07 1 coordination_service_agent.cc:9] x\n",
            id="another error",
        ),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "prts train: ended by SIGKILL; start the same command on all hosts, the run resumes "
            "from its last checkpoint\n",
            id="out of memory",
        ),
    ],
)
def test_the_parent_ends_as_its_child_does(program, code, error):
    process = start(program)
    assert process.communicate(timeout=60)[1] == error
    assert process.returncode == code


def test_lines_after_a_warning_are_shown_while_the_run_goes_on():
    """A run that prints every half second never falls silent, so silence cannot end the wait."""
    warning = "say('W1129 02:46:37.07 1 distributed.cc:9] slow')\n"
    process = start(f"{warning}for _ in range(14): time.sleep(0.5); say('step')\ntime.sleep(60)")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("W1129")
    assert process.stderr.readline() == "step\n"
    process.kill()


def test_sigterm_reaches_the_child_and_a_killed_parent_takes_it_along():
    waiting = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nprint(flush=True)\n"
    stopped = start(f"{waiting}signal.sigwait([signal.SIGTERM])\nsys.exit(75)")
    killed = start("print(flush=True)\ntime.sleep(600)")
    for process in (stopped, killed):
        assert process.stdout is not None
        process.stdout.readline()
    stopped.terminate()
    stopped.communicate(timeout=60)
    assert stopped.returncode == 75
    killed.kill()
    killed.communicate(timeout=60)  # the child holds the pipe open until it is gone
