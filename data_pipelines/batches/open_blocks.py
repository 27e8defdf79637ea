"""Blocks of a store that stay in memory while their windows are read, interleaved with others'."""

from collections import OrderedDict

import numpy as np

from data_pipelines.store.index import SOURCE_DTYPE, token_dtype
from data_pipelines.store.store import TokenStore


class OpenBlocks:
    """The blocks read last, each from one read of the store, at most `most` of them.

    A block takes 3 bytes a token (5 with a large vocabulary), and 4 more with documents kept apart.
    What it returns depends on the store alone.
    """

    def __init__(self, store: TokenStore, size: int, most: int, documents: bool):
        """Takes the tokens of a block, and whether documents are kept apart."""
        self._store, self._size, self._most, self._documents = store, size, most, documents
        self._blocks: OrderedDict[int, tuple[np.ndarray, ...]] = OrderedDict()

    def read(self, blocks: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
        """Returns windows as `TrainBatches.windows`: int32 [2 or 3, n, length + 1].

        `blocks` has the block of each window, and `offsets` the tokens before it there: int64 [n].
        """
        wanted = np.unique(blocks).tolist()
        # Blocks of this call stay, even if there are more than `most`.
        open_now = {block: self._blocks.pop(block) for block in wanted if block in self._blocks}
        missing = [block for block in wanted if block not in open_now]
        spans = [(block * self._size, self._size + 1) for block in missing]
        arrays = self._store.read_many(spans, self._documents)
        open_now |= zip(missing, map(self._narrow, arrays), strict=True)
        out = np.empty((2 + self._documents, len(blocks), length + 1), np.int32)
        for row, (block, offset) in enumerate(zip(blocks.tolist(), offsets.tolist(), strict=True)):
            for kind, array in enumerate(open_now[block]):
                out[kind, row] = array[offset : offset + length + 1]
        finished = set(blocks[offsets + length == self._size].tolist())
        self._blocks.update((n, block) for n, block in open_now.items() if n not in finished)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        return out

    def _narrow(self, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        tokens, sources, *offsets = arrays
        dtype = token_dtype(self._store.vocab_size)
        return (tokens.astype(dtype), sources.astype(SOURCE_DTYPE), *offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks in memory."""
        return sum(array.nbytes for block in self._blocks.values() for array in block)
