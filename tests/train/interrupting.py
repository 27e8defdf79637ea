"""Acts of a test in the middle of a run in this process."""

from collections.abc import Callable

import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.train import loop


class Killed(Exception):
    """Ends a run without a save."""


def kill() -> None:
    raise Killed


def call_during_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Calls `act` when the step after `step` (of the lineage) is dispatched and not yet counted."""
    advance = loop.advance

    def acting(lineage: Lineage, *arguments: object) -> Lineage:
        if lineage.step == step:
            act()
        return advance(lineage, *arguments)  # type: ignore[arg-type]

    patch.setattr(loop, "advance", acting)


def kill_before_stage(patch: pytest.MonkeyPatch, index: int) -> None:
    """Ends the run when a stage begins; the stage before it is saved."""
    begin = loop.begin

    def killing(*arguments: object) -> object:
        return kill() if index in arguments else begin(*arguments)  # type: ignore[arg-type]

    patch.setattr(loop, "begin", killing)
