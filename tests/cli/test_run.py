"""How commands end: exit codes, and one line on standard error."""

import pytest

from prts_jax.cli import run
from prts_jax.errors import Interrupted, UserError


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("--target: exists"), 2, "prts grow: --target: exists\n"),
        (Interrupted("stopped by SIGTERM"), 75, "prts grow: stopped by SIGTERM\n"),
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


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def command(argv: object) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(command, [], "grow")
