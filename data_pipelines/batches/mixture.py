"""Mixtures: the sets of a store to train on, and their shares.

Natural shares need only `TokenStore.only`. For given shares `MixedBatches` deals the run's windows
to the sets in rounds of `ROUND`, each round shuffled.
"""

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.batches.packed import PackedBatches, check_packed
from data_pipelines.batches.permutation import permute
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

ROUND = 1024

WITHOUT = {"no_github": "RedPajamaGithub"}
"""Mixtures that are all sets but one; the paper trained without GitHub."""


@dataclass(frozen=True)
class MixedBatches(TrainBatches):
    """Windows of several sets in given shares; each set has its own epochs.

    After any whole number of rounds each set has had its share of the windows, rounded by less
    than the number of sets. Every window of a set comes once before any comes again.
    """

    def _check_store(self) -> None:
        for part in self._parts:
            part._check_store()

    @functools.cached_property
    def weights(self) -> Mapping[str, Fraction]:
        """The share of each set; shares are relative to their sum."""
        return parse_weights(self.order.mixture)

    @functools.cached_property
    def _parts(self) -> tuple[TrainBatches, ...]:
        total = sum(self.weights.values())
        return tuple(
            TrainBatches(
                self.store.only([name]), self.order, int(self.open_tokens * weight / total)
            )
            for name, weight in self.weights.items()
        )

    @functools.cached_property
    def _borders(self) -> tuple[Fraction, ...]:
        """Cumulative shares: the sum before each set, and 1 at the end."""
        total = sum(self.weights.values())
        sums = [Fraction(0)]
        for weight in self.weights.values():
            sums.append(sums[-1] + weight / total)
        return tuple(sums)

    def _dealt(self, windows: int) -> np.ndarray:
        """Returns each set's number of the run's first `windows` windows, a multiple of ROUND.

        All values are integers, so shares never drift. Each set takes its part of the windows that
        later sets leave, rounded up, so no count ever falls.
        """
        counts, left = [], windows
        for before, after in reversed(list(itertools.pairwise(self._borders))):
            below = int(left * before / after)
            counts.append(left - below)
            left = below
        return np.array(counts[::-1])

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows after which every set has been read once."""
        shares = (
            after - before for before, after in zip(self._borders, self._borders[1:], strict=False)
        )
        return max(
            -(-part.windows_per_epoch // share)
            for part, share in zip(self._parts, shares, strict=True)
        )

    def keeps_position(self, position: int) -> bool:
        """Returns False: shares are of windows, so another length deals other tokens."""
        return False

    def windows(self, consumed: np.ndarray) -> np.ndarray:
        """Implements `TrainBatches.windows`."""
        sets, windows = self.deal(consumed)
        out = np.empty((2 + self.order.documents, len(consumed), self.order.length + 1), np.int32)
        for number, part in enumerate(self._parts):
            here = np.flatnonzero(sets == number)
            out[:, here] = part.windows(windows[here])
        return out

    def deal(self, consumed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the set of each of the run's windows and the set's number of earlier windows.

        Both are int64; the set is an index into `weights`.
        """
        sets, windows = np.empty_like(consumed), np.empty_like(consumed)
        rounds, slots = np.divmod(consumed, ROUND)
        for number in np.unique(rounds):
            here = rounds == number
            dealt, before = self._round(int(number))
            sets[here], windows[here] = dealt[slots[here]], before[slots[here]]
        return sets, windows

    def _round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns each slot's set and the set's number of earlier windows; both [ROUND]."""
        start, stop = (self._dealt(n * ROUND) for n in (number, number + 1))
        slots = np.arange(ROUND)
        if self.order.shuffle:
            key = f"{self.order.seed}/mixture/{number}/{self.store.fingerprint}"
            slots = permute(slots, ROUND, key)
        sets = np.searchsorted(np.cumsum(stop - start), slots, side="right")
        one_hot = sets[:, None] == np.arange(len(self.weights))
        earlier = np.cumsum(one_hot, axis=0)[np.arange(ROUND), sets] - 1
        return sets, start[sets] + earlier


def train_batches(store: TokenStore, order: ReadOrder) -> TrainBatches:
    """Returns the batches that an order reads from a store.

    Args:
      store: with layout "by_set", unless the mixture takes everything in it.
      order: the read order.

    Raises:
      UserError: a mixture that cannot be parsed, an unknown set, a store with mixed sets, a set
        smaller than a window, or a packed store without `order.instructions` (or the reverse).
    """
    check_packed(store, order.instructions)
    mixture = order.mixture
    if order.instructions:
        return PackedBatches(store, order)
    if mixture in ("", "natural"):
        return TrainBatches(store, order)
    if mixture in WITHOUT:
        names = [name for name in store.sources if name != WITHOUT[mixture]]
        return TrainBatches(store.only(names), order)
    if "=" not in mixture:
        return TrainBatches(store.only(name.strip() for name in mixture.split(",")), order)
    return MixedBatches(store, order)


def parse_weights(mixture: str) -> Mapping[str, Fraction]:
    """Parses "A=0.7,B=0.3" into exact shares, in the order given; they need not add up to 1.

    Raises:
      UserError: a share that is not a number above 0, or a set named twice.
    """
    weights: dict[str, Fraction] = {}
    for part in mixture.split(","):
        name, _, value = (text.strip() for text in part.partition("="))
        try:
            weight = Fraction(value)
        except (ValueError, ZeroDivisionError):
            weight = Fraction(0)
        if weight <= 0 or name in weights:
            raise UserError(
                f"mixture {mixture!r}: cannot read {part.strip()!r}; give each set once with a "
                "share above 0, as in 'A=0.7,B=0.3'"
            )
        weights[name] = weight
    return weights
