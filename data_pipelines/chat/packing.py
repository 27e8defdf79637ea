"""Whole examples packed into rows when a store is made, so that reading needs no thought of it.

Each row is `length` + 1 tokens: `length` inputs and the same shifted by one as targets. No example
lies in two rows. What a row has left is one document of the last source, `store.PADDING`.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.batches.permutation import permute
from data_pipelines.chat.template import PLAIN, Template
from data_pipelines.store.writer import Encoded
from prts_jax.errors import UserError

TOO_LONG = ("truncate", "refuse")


@dataclass(frozen=True)
class Packing:
    """How examples become rows.

    Attributes:
      length: inputs of a row.
      too_long: of `TOO_LONG`: what becomes of an example that does not fit into a row.
      held_out: share of the rows of input that are the validation split.
      seed: of the order in which examples are packed.
      template: of the examples' text.
    """

    length: int
    too_long: str = "truncate"
    held_out: float = 0.0
    seed: int = 0
    template: Template = PLAIN

    def __post_init__(self) -> None:
        if self.length < 2:
            raise UserError(f"--length={self.length}: give at least 2")
        if not 0 <= self.held_out < 1:
            raise UserError(f"--held_out={self.held_out}: give a share of 0 … 1, 1 excluded")


def pack(
    examples: Iterable[Encoded], packing: Packing, padding_source: int, padding_id: int
) -> Iterator[Encoded]:
    """Yields the examples row by row, and after those of a row its padding; holds all in memory.

    Args:
      examples: none longer than a row; each with its answers.
      packing: see there.
      padding_source: source id of the padding.
      padding_id: its token.
    """
    found = list(examples)
    if not found:
        return
    shuffled = permute(np.arange(len(found)), len(found), f"{packing.seed}/packing")
    order = [found[number] for number in shuffled]
    row_size = packing.length + 1
    for row in best_fit([len(example.tokens) for example in order], row_size):
        yield from (order[number] for number in row)
        left = row_size - sum(len(order[number].tokens) for number in row)
        if left:
            tokens = np.full(left, padding_id, np.int32)
            yield Encoded(tokens, padding_source, answers=np.zeros(left, np.uint8))


def best_fit(sizes: Sequence[int], row_size: int) -> list[list[int]]:
    """Puts each example, in order, into the row that it leaves the least space in.

    The best-fit rule of bin packing (Johnson et al., SIAM J. Comput. 3, 1974).

    Args:
      sizes: of the examples, each at most `row_size`.
      row_size: of a row.

    Returns:
      For each row the numbers of its examples.
    """
    rows: list[list[int]] = []
    with_space: dict[int, list[int]] = {}  # rows by the space they have left
    spaces: list[int] = []  # the keys of it, sorted
    for number, size in enumerate(sizes):
        place = bisect_left(spaces, size)
        if place == len(spaces):
            rows.append([])
            row, space = len(rows) - 1, row_size
        else:
            space = spaces[place]
            row = with_space[space].pop()
            if not with_space[space]:
                del with_space[space], spaces[place]
        rows[row].append(number)
        left = space - size
        if left and left not in with_space:
            with_space[left] = []
            insort(spaces, left)
        if left:
            with_space[left].append(row)
    return rows
