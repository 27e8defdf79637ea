"""Packing of whole examples into rows, done once, when a store is built.

Each row is `length` + 1 tokens: `length` inputs and the same shifted by one as targets. No example
crosses rows. The rest of a row is one document of a source of its own, `store.PADDING`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.batches.permutation import permute
from data_pipelines.chat.template import PLAIN, Template
from data_pipelines.store.writer import Encoded
from prts_jax.errors import UserError

MAX_LENGTH = 1 << 24  # tokens of a row, far above any context


@dataclass(frozen=True)
class Packing:
    """Options of packing.

    Attributes:
      length: inputs of a row.
      too_long: treatment of an example that does not fit into a row: "truncate" or "refuse".
      held_out: share of the input's rows for the validation split.
    """

    length: int
    too_long: str = "truncate"
    held_out: float = 0.0
    seed: int = 0
    template: Template = PLAIN

    def __post_init__(self) -> None:
        if not 2 <= self.length <= MAX_LENGTH:
            raise UserError(f"--length={self.length}: give at least 2, at most {MAX_LENGTH}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"--held_out={self.held_out}: give a share of 0 … 1, 1 excluded")


def pack(
    examples: Iterable[Encoded], packing: Packing, padding_source: int, padding_id: int
) -> Iterator[Encoded]:
    """Yields the examples row by row, each row followed by its padding; holds all in memory.

    No example is longer than a row. All have answers.
    """
    in_order = list(examples)
    if not in_order:
        return
    order = permute(np.arange(len(in_order)), len(in_order), f"{packing.seed}/packing")
    shuffled = [in_order[number] for number in order]
    row_size = packing.length + 1
    for row in best_fit([len(example.tokens) for example in shuffled], row_size):
        yield from (shuffled[number] for number in row)
        left = row_size - sum(len(shuffled[number].tokens) for number in row)
        if left:
            tokens = np.full(left, padding_id, np.int32)
            yield Encoded(tokens, padding_source, answers=np.zeros(left, np.uint8))


def best_fit(sizes: Sequence[int], row_size: int) -> list[list[int]]:
    """Puts each example, in order, into the row with the least sufficient space.

    Returns the numbers of each row's examples. The best-fit rule of bin packing (Johnson et al.,
    SIAM J. Comput. 3, 1974).
    """
    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}  # space left → rows
    spaces: list[int] = []  # its keys, sorted
    for number, size in enumerate(sizes):
        index = bisect_left(spaces, size)
        if index == len(spaces):
            rows.append([])
            row, space = len(rows) - 1, row_size
        else:
            space = spaces[index]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[index]
        rows[row].append(number)
        left = space - size
        if left and left not in with_space:
            with_space[left] = []
            insort(spaces, left)
        if left:
            with_space[left].append(row)
    return rows
