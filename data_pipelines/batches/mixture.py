"""Mixtures: the sets of a store, or the stores, to train on, and their shares.

Natural shares need only `TokenStore.only`. For given shares `MixedBatches` deals the run's windows
in rounds of `ROUND`, each round shuffled.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import OPEN_TOKENS, ReadOrder
from data_pipelines.batches.packed import PackedBatches, check_packed
from data_pipelines.batches.permutation import permute
from data_pipelines.store.index import SEPARATOR
from data_pipelines.store.several import Stores, parse_share
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

ROUND = 1024

WITHOUT = {"no_github": "RedPajamaGithub"}
"""Mixtures that are all sets but one; the paper trained without GitHub."""


@dataclass(frozen=True)
class MixedBatches(TrainBatches):
    """Windows of several sets or stores in given shares; each has its own epochs.

    After any whole number of rounds each has had its share of the windows, rounded by less than
    the number of parts. Every window of a part comes once before any comes again.

    Attributes:
      store: a `TokenStore`, whose sets are mixed, or `Stores`.
      parts: batches of each set or store.
      shares: share of each part, 1 in sum.
      first_sources: number added to the source ids of each part.
    """

    store: Any
    parts: tuple[TrainBatches, ...] = ()
    shares: tuple[Fraction, ...] = ()
    first_sources: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Does nothing: each part has checked its own."""

    @functools.cached_property
    def _borders(self) -> tuple[Fraction, ...]:
        """Cumulative shares: the sum before each part, and 1 at the end."""
        return tuple(itertools.accumulate(self.shares, initial=Fraction(0)))

    def _dealt(self, windows: int) -> np.ndarray:
        """Returns each part's number of the run's first `windows` windows, a multiple of ROUND.

        All values are integers, so shares never drift. Each part takes its share of the windows
        that later parts leave, rounded up, so no count ever falls.
        """
        counts, left = [], windows
        for before, after in reversed(list(itertools.pairwise(self._borders))):
            below = int(left * before / after)
            counts.append(left - below)
            left = below
        return np.array(counts[::-1])

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows after which every part has been read once."""
        return max(
            -(-part.windows_per_epoch // share)
            for part, share in zip(self.parts, self.shares, strict=True)
        )

    def keeps_position(self, position: int) -> bool:
        """Returns False: shares are of windows, so another length deals other tokens."""
        return False

    def windows(self, consumed: np.ndarray) -> np.ndarray:
        """Implements `TrainBatches.windows`."""
        kinds, size = 2 + self.order.documents, self.order.length + 1
        out = np.empty((kinds, len(consumed), size), np.int32)
        for part, first_source, here, windows in self._by_part(consumed):
            out[:, here] = part.windows(windows)
            if first_source:
                out[1, here] += first_source
        return out

    def weights(self, consumed: np.ndarray) -> np.ndarray:
        """Implements `TrainBatches.weights`."""
        out = super().weights(consumed)
        if self.order.instructions:
            for part, _, here, windows in self._by_part(consumed):
                out[here] = part.weights(windows)
        return out

    def inputs(self, consumed: np.ndarray) -> int:
        """Implements `TrainBatches.inputs`."""
        return sum(part.inputs(windows) for part, _, _, windows in self._by_part(consumed))

    def starts(self, consumed: np.ndarray) -> list[tuple[TokenStore, int]]:
        """Implements `TrainBatches.starts`."""
        by_window: dict[int, tuple[TokenStore, int]] = {}
        for part, _, here, windows in self._by_part(consumed):
            by_window |= zip(here.tolist(), part.starts(windows), strict=True)
        return [by_window[number] for number in range(len(consumed))]

    def _by_part(
        self, consumed: np.ndarray
    ) -> Iterator[tuple[TrainBatches, int, np.ndarray, np.ndarray]]:
        """Yields each part, its first source, and where and which of its windows are."""
        owners, windows = self.deal(consumed)
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(owners == number)
            yield part, self.first_sources[number], here, windows[here]

    def deal(self, consumed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the part of each of the run's windows and the part's number of earlier windows.

        Both are int64; the part is an index into `parts`.
        """
        owners, windows = np.empty_like(consumed), np.empty_like(consumed)
        rounds, slots = np.divmod(consumed, ROUND)
        for number in np.unique(rounds):
            here = rounds == number
            dealt, before = self._round(int(number))
            owners[here], windows[here] = dealt[slots[here]], before[slots[here]]
        return owners, windows

    def _round(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns each slot's part and the part's number of earlier windows; both [ROUND]."""
        start, stop = (self._dealt(n * ROUND) for n in (number, number + 1))
        slots = np.arange(ROUND)
        if self.order.shuffle:
            key = f"{self.order.seed}/mixture/{number}/{self.store.fingerprint}"
            slots = permute(slots, ROUND, key)
        owners = np.searchsorted(np.cumsum(stop - start), slots, side="right")
        one_hot = owners[:, None] == np.arange(len(self.parts))
        earlier = np.cumsum(one_hot, axis=0)[np.arange(ROUND), owners] - 1
        return owners, start[owners] + earlier


def train_batches(
    store: TokenStore | Stores, order: ReadOrder, open_tokens: int = OPEN_TOKENS
) -> TrainBatches:
    """Returns the batches that an order reads from a store, or from several in their shares.

    A store needs layout "by_set", unless the mixture takes everything in it; the mixture has an
    entry for each of several stores.

    Raises:
      UserError: a mixture that cannot be parsed, an unknown set, a store with mixed sets, a set
        smaller than a window, or a packed store without `order.instructions` (or the reverse).
    """
    if isinstance(store, Stores):
        return _mix_stores(store, order, open_tokens)
    check_packed(store, order.instructions)
    mixture = order.mixture
    if SEPARATOR in mixture:
        raise UserError(
            f"config.data.mixture: {mixture!r} is for several stores, and config.data.train names "
            "one; give the mixture of that one"
        )
    if order.instructions:
        return PackedBatches(store, order)
    if mixture in ("", "natural"):
        return _whole(store, order, open_tokens)
    if mixture in WITHOUT:
        names = [name for name in store.sources if name != WITHOUT[mixture]]
        return _whole(store.only(names), order, open_tokens)
    if "=" not in mixture:
        names = [name.strip() for name in mixture.split(",")]
        return _whole(store.only(names), order, open_tokens)
    return _mix_sets(store, order, open_tokens)


def _whole(store: TokenStore, order: ReadOrder, open_tokens: int) -> TrainBatches:
    """Returns the batches of all tokens of a store in their natural shares."""
    return TrainBatches(store.set_by_set() if order.stratified else store, order, open_tokens)


def _mix_sets(store: TokenStore, order: ReadOrder, open_tokens: int) -> MixedBatches:
    weights = parse_weights(order.mixture)
    total = sum(weights.values())
    shares = tuple(weight / total for weight in weights.values())
    parts = tuple(
        TrainBatches(store.only([name]), order, int(open_tokens * share))
        for name, share in zip(weights, shares, strict=True)
    )
    return MixedBatches(store, order, open_tokens, parts, shares, (0,) * len(parts))


def _mix_stores(stores: Stores, order: ReadOrder, open_tokens: int) -> MixedBatches:
    count = len(stores.stores)
    mixtures = order.mixture.split(SEPARATOR) if order.mixture else [""] * count
    if len(mixtures) != count:
        raise UserError(
            f"config.data.mixture: {order.mixture!r} is for {len(mixtures)} stores, and "
            f"config.data.train names {count}; give each store's own, separated by "
            f"{SEPARATOR!r} (nothing for all of a store)"
        )
    parts = tuple(
        train_batches(
            store, dataclasses.replace(order, mixture=mixture.strip()), int(open_tokens * share)
        )
        for store, share, mixture in zip(stores.stores, stores.shares, mixtures, strict=True)
    )
    # A choice of sets has its own fingerprint.
    chosen = dataclasses.replace(stores, stores=tuple(part.store for part in parts))
    return MixedBatches(chosen, order, open_tokens, parts, stores.shares, stores.first_sources)


def parse_weights(mixture: str) -> Mapping[str, Fraction]:
    """Parses "A=0.7,B=0.3" into exact shares, in the order given; they need not add up to 1.

    Raises:
      UserError: a share that is not a number above 0, or a set named twice.
    """
    weights: dict[str, Fraction] = {}
    for part in mixture.split(","):
        name, _, value = (text.strip() for text in part.partition("="))
        weight = parse_share(value)
        if weight <= 0 or name in weights:
            raise UserError(
                f"mixture {mixture!r}: cannot read {part.strip()!r}; give each set once with a "
                "share above 0, as in 'A=0.7,B=0.3'"
            )
        weights[name] = weight
    return weights
