"""The widening of one logical axis, as data."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NEW = -1
"""Stands for the source position of a position that copies none."""


@dataclass(frozen=True)
class Widening:
    """The source position of each position of a wider axis.

    Attributes:
      index: for each target position the source position that it copies, or `NEW`.
      weights: for each target position the factor of its values in leaves that contract the axis.
        Where the copies of a position have weights that sum to one, the sum over the axis stays
        what it was: `W' = W R` with `R = [α β …]`, α + β + … = I (Net2Net; arXiv 2405.15319,
        App. A).
    """

    index: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def has_new(self) -> bool:
        """Whether some positions copy none of the source."""
        return NEW in self.index

    def copies(self) -> Counter[int]:
        """Returns how often each source position is copied."""
        return Counter(position for position in self.index if position != NEW)

    def is_new(self) -> np.ndarray:
        """Returns a bool for each target position: it copies none, or is no first copy."""
        index = np.asarray(self.index)
        new = np.ones(len(index), bool)
        positions, first = np.unique(index, return_index=True)
        new[first[positions != NEW]] = False
        return new

    def is_partition(self) -> bool:
        """Whether the weights of each source position's copies sum to one."""
        sums: dict[int, float] = {}
        for position, weight in zip(self.index, self.weights, strict=True):
            if position != NEW:
                sums[position] = sums.get(position, 0.0) + weight
        return all(math.isclose(total, 1, abs_tol=1e-9) for total in sums.values())

    def pair_signs(self) -> tuple[int, ...]:
        """Returns +1 and -1 for the copies of each position in turn, 0 for one without a partner.

        Noise times these signs cancels in every sum over the axis.
        """
        seen: Counter[int] = Counter()
        copies = self.copies()
        signs = []
        for position in self.index:
            alone = seen[position] == copies[position] - 1 and copies[position] % 2
            signs.append(0 if position == NEW or alone else 1 - 2 * (seen[position] % 2))
            seen[position] += 1
        return tuple(signs)

    def to_json(self) -> dict[str, Any]:
        """Returns runs: [first source position (or -1), count] and [weight, count]."""
        return {
            "index": [list(run) for run in runs(self.index, step=1)],
            "weights": [list(run) for run in runs(self.weights, step=0)],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Widening":
        """Reads what `to_json` returned.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        index: list[int] = []
        for first, count in values["index"]:
            index += [NEW] * count if first == NEW else range(int(first), int(first) + count)
        weights = [float(weight) for weight, count in values["weights"] for _ in range(count)]
        return cls(tuple(index), tuple(weights))

    def __str__(self) -> str:
        """Writes the index as zero-based half-open ranges and counts of new positions."""
        listed = list(runs(self.index, step=1))
        shown = [
            f"{count} new" if first == NEW else f"{first}:{first + count}"
            for first, count in listed[:8]
        ]
        return ",".join([*shown, "…"] if len(listed) > 8 else shown)


def partition(index: Sequence[int], uneven: bool) -> Widening:
    """Returns a widening whose weights sum to one over the copies of each position.

    `uneven` c copies weigh c, c-1, …, 1 parts (2/3 and 1/3 of two) instead of 1/c each. Equal
    copies with equal weights get equal gradients for ever; unequal weights part them.
    """
    copies = Counter(position for position in index if position != NEW)
    seen: Counter[int] = Counter()
    weights = []
    for position in index:
        c = copies[position]
        parts = (c - seen[position], c * (c + 1) / 2) if uneven else (1, c)
        weights.append(1.0 if position == NEW else parts[0] / parts[1])
        seen[position] += 1
    return Widening(tuple(index), tuple(weights))


def keeping_mean_square(index: Sequence[int]) -> Widening:
    """Returns a widening that keeps the mean square of a sum over the axis, not the sum.

    All weights are √(d / Σ c²), for a source of d positions that are copied c times each; for
    D ≤ 2d positions that is √(d / (3D − 2d)) (SPARKLING, arXiv 2602.02472). With new positions,
    drawn independently with the same scale, they are √(d / D).
    """
    copies = Counter(position for position in index if position != NEW)
    new = sum(position == NEW for position in index)
    squares = new + sum(count**2 for count in copies.values())
    return Widening(tuple(index), (math.sqrt(len(copies) / squares),) * len(index))


def runs(values: Sequence[Any], step: int) -> Iterator[tuple[Any, int]]:
    """Yields (first, count) of runs that rise by `step`; of `NEW`, runs of the same.

    >>> list(runs((0, 1, 2, -1, -1, 0), step=1))
    [(0, 3), (-1, 2), (0, 1)]
    """
    start = 0
    for at in range(1, len(values) + 1):
        expected = NEW if step and values[at - 1] == NEW else values[at - 1] + step
        if at == len(values) or values[at] != expected:
            yield values[start], at - start
            start = at


def along(vector: Any, at: int, ndim: int) -> Any:
    """Returns a vector as an array of `ndim` dimensions that lies along one of them."""
    return vector.reshape([-1 if axis == at else 1 for axis in range(ndim)])
