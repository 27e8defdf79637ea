"""The order in which a run reads a store: the values that decide what each step's batch holds."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Self

import numpy as np

from data_pipelines.batches.permutation import permute
from prts_jax.errors import UserError

OPEN_TOKENS = 1 << 26
"""Tokens of the blocks whose pieces are interleaved. A part of every order: it never changes."""


@dataclass(frozen=True)
class ReadOrder:
    """The content of a training batch at a position, for a given store.

    Attributes:
      length: inputs of a window, in tokens.
      batch: windows of a global batch.
      seed: seed of the shuffle.
      shuffle: False reads the windows in the store's order.
      overlap: True reads windows that share one token, so every token is a target once; False
        reads disjoint windows of length + 1 tokens, as the original's packed dataset.
      block: tokens that stay together when the order is shuffled, a multiple of the length; 0
        shuffles the windows. A block is read in one piece, which object storage needs, and a
        position stays exact when the length changes to another divisor of the block. Tokens after
        the last whole block are left out.
      pieces: pieces into which a block is cut, at least this many if it has that many windows; the
        pieces of all open blocks take turns (`spread`). 1: the windows of a block follow one
        another, the order of versions without this field.
      strata: equal parts of the store, its sets one after the other; of as many blocks that open in
        turn each comes from another part, so that the sets of a batch scatter less than by chance.
        1: blocks open in any order, that of versions without this field.
      documents: keeps documents apart: batches say where each begins.
      mixture: "" or "natural" for everything; "no_github"; sets ("A,B") in their natural shares;
        or shares of windows ("A=0.7,B=0.3").
      instructions: reads a packed store, with the loss on its answers alone.
    """

    length: int
    batch: int
    seed: int = 0
    _: KW_ONLY
    shuffle: bool = True
    overlap: bool = True
    block: int = 0
    pieces: int = 1
    strata: int = 1
    documents: bool = False
    mixture: str = ""
    instructions: bool = False

    def __post_init__(self) -> None:
        check_sizes(self.length, self.batch)
        if self.block % self.length or self.block < 0:
            raise UserError(
                f"block={self.block} is not a multiple of length={self.length}: give one, or 0"
            )
        if min(self.pieces, self.strata) < 1:
            raise UserError(f"pieces={self.pieces}, strata={self.strata}: give at least 1")
        if self.block and not self.overlap:
            raise UserError(
                "block and overlap=False: disjoint windows cannot share blocks; drop one"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any], **changes: Any) -> Self:
        """Returns the order that a `config.data` describes; `changes` win over its values."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: values[name] for name in names} | changes)

    @property
    def stride(self) -> int:
        """Tokens from the start of a window to the start of the next."""
        return self.length if self.overlap else self.length + 1

    @property
    def block_windows(self) -> int:
        """Windows that stay together when the order is shuffled."""
        return max(self.block // self.length, 1)

    @property
    def block_pieces(self) -> int:
        """Pieces of a block; each is a whole number of windows."""
        windows = self.block_windows
        least = min(self.pieces, windows)
        return next(count for count in range(least, windows + 1) if windows % count == 0)

    @property
    def piece(self) -> int:
        """Tokens of a piece; 0 without blocks."""
        return self.block // self.block_pieces

    def spread(
        self, windows: np.ndarray, blocks: int, open_tokens: int = OPEN_TOKENS
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps an epoch's windows to the blocks, in their order of opening.

        The epoch has as many turns as blocks. At each turn one block opens and all open blocks of
        the right age give a piece: block b gives its piece j at turn b + j·apart, modulo the number
        of blocks. So every piece comes once, any turn is known without those before it, and with
        apart ≥ 1 a block takes part in one of `apart` turns until it is used up.

        Returns the block of each window, and the number of earlier windows in it, both int64.
        `open_tokens` are the tokens of the open blocks together.
        """
        pieces = self.block_pieces
        turns, within = np.divmod(windows, self.block_windows)
        ages, within = np.divmod(within, self.block_windows // pieces)
        opened = (turns - ages * self.apart(blocks, open_tokens)) % blocks
        return opened, ages * (self.block_windows // pieces) + within

    @property
    def stratified(self) -> bool:
        """Whether blocks open from parts of the store in turn."""
        return self.shuffle and self.block > 0 and self.strata > 1

    def blocks_of(self, opened: np.ndarray, blocks: int, key: str) -> np.ndarray:
        """Maps blocks in their order of opening to blocks of the store: int64, a permutation.

        `key` is that of the epoch's shuffle.
        """
        if not self.stratified:
            return permute(opened, blocks, key)
        strata = min(self.strata, blocks)
        # In each round every stratum opens a block, in an order that each round turns anew. The
        # first `longer` strata have a block more, which comes in a last round.
        rounds, longer = divmod(blocks, strata)
        of_round, slot = np.divmod(opened, strata)
        turned = permute(of_round, rounds + 1, f"{key}/turns")
        stratum = (permute(slot, strata, f"{key}/strata") + turned) % strata
        last = of_round == rounds
        stratum[last] = permute(slot[last], max(longer, 1), f"{key}/last")
        first = stratum * rounds + np.minimum(stratum, longer)
        sizes = rounds + (stratum < longer)
        shift = permute(stratum, blocks, f"{key}/shifts")
        result = np.empty_like(opened)
        for size in {rounds, rounds + (longer > 0)}:
            here = sizes == size
            within = permute(of_round[here], size, f"{key}/within {size}") + shift[here]
            result[here] = first[here] + within % size
        return result

    def apart(self, blocks: int, open_tokens: int = OPEN_TOKENS) -> int:
        """Returns the turns from one piece of a block to its next."""
        most = min(open_tokens // max(self.block, 1), blocks)
        return max(most // self.block_pieces, 1)

    def consumed(self, position: int, start: int, stop: int) -> np.ndarray:
        """Returns how many of the run's windows precede each row of [start, stop): int64 [rows].

        The position is the tokens consumed before this batch, in the whole run: windows × length.

        Raises:
          UserError: the position is not between two windows (it was counted at another length).
        """
        check_rows(start, stop, self.batch)
        if position < 0 or position % self.length:
            raise UserError(
                f"position {position} is not a multiple of length={self.length}: keep the length "
                "that the position was counted with"
            )
        return position // self.length + np.arange(start, stop, dtype=np.int64)


def check_sizes(length: int, batch: int) -> None:
    """Raises UserError unless both sizes are at least 1."""
    if length < 1 or batch < 1:
        raise UserError(f"length={length}, batch={batch}: both must be at least 1")


def check_rows(start: int, stop: int, batch: int) -> None:
    """Raises ValueError unless [start, stop) are rows of a batch."""
    if not 0 <= start <= stop <= batch:
        raise ValueError(f"rows [{start}, {stop}) of a batch of {batch}")
