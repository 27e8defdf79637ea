"""Warnings of training losses far above those of the steps before."""

import collections

import numpy as np

WINDOW = 100
"""Steps whose losses are the running loss."""

FEWEST = 20
"""Steps before the first warning after a start."""

SMALLEST = 1e-3
"""Least deviation, as a share of the mean."""


class SpikeWatch:
    """Mean and standard deviation of the last losses, since the start of this process."""

    def __init__(self, deviations: float) -> None:
        """Makes a watch.

        Args:
          deviations: distance above the mean from which a loss is a spike; 0.0: none is.
        """
        self._deviations = deviations
        self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def see(self, loss: float) -> str:
        """Takes the loss of a step, in nats per token; returns a warning, or ""."""
        text = ""
        if self._deviations and len(self._losses) >= FEWEST:
            mean, deviation = float(np.mean(self._losses)), float(np.std(self._losses))
            distance = (loss - mean) / max(deviation, SMALLEST * mean, 1e-9)
            if distance > self._deviations:
                text = (
                    f"loss is {loss:.4g}, {distance:.1f} deviations above the mean {mean:.4g} of "
                    f"the last {len(self._losses)} steps"
                )
        self._losses.append(loss)
        return text
