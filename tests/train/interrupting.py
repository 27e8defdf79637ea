"""Acts of a test in the middle of a run in this process."""

from collections.abc import Callable

import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.train import loop, stage_loop
from prts_jax.train.stages import Stage


class Killed(Exception):
    """Ends a run without a save."""


def kill() -> None:
    raise Killed


def call_during_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Calls `act` when the step after `step` (of the lineage) is dispatched and not yet counted."""
    advance = stage_loop.advance

    def acting(lineage: Lineage, *arguments: object) -> Lineage:
        if lineage.step == step:
            act()
        return advance(lineage, *arguments)  # type: ignore[arg-type]

    patch.setattr(stage_loop, "advance", acting)


def kill_before_stage(patch: pytest.MonkeyPatch, index: int) -> None:
    """Ends the run when a stage begins; the stage before it is saved."""
    begin = loop.begin

    def killing(stage: Stage, *arguments: object) -> object:
        return kill() if stage.index == index else begin(stage, *arguments)  # type: ignore[arg-type]

    patch.setattr(loop, "begin", killing)
