"""Warnings of losses far above the running loss."""

import numpy as np
import pytest

from prts_jax.train.spikes import FEWEST, SpikeWatch

FALLING = [5 - 0.02 * step + 0.05 * np.sin(step) for step in range(60)]


def warnings(losses: list[float], deviations: float) -> list[int]:
    watch = SpikeWatch(deviations)
    return [step for step, loss in enumerate(losses) if watch.see(loss)]


@pytest.mark.parametrize(
    ("losses", "deviations", "steps"),
    [
        ([*FALLING, 9.0, *FALLING[-3:]], 5.0, [60]),
        ([*FALLING, 9.0], 0.0, []),
        ([*FALLING, 0.5], 5.0, []),
        (FALLING, 5.0, []),
        ([2.0] * 40 + [2.001, 2.5], 5.0, [41]),
        ([2.0] * (FEWEST - 1) + [9.0], 5.0, []),
    ],
    ids=["spike", "off", "fall", "noise", "constant", "too early"],
)
def test_a_loss_far_above_the_running_loss_is_named(losses, deviations, steps):
    assert warnings(losses, deviations) == steps
