"""Files of instruction data as a task: each row an example with marked answers."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from data_pipelines.chat.packing import Packing
from data_pipelines.chat.turns import Encode, tokens_of, turns_of
from data_pipelines.store.index import MAX_SETS, PADDING
from data_pipelines.store.writer import Encoded
from data_pipelines.text.arrays import numbered_rows
from data_pipelines.text.folders import (
    SPLITS,
    Format,
    files_of,
    set_of,
    splits_of,
)
from data_pipelines.text.lines import Damage
from data_pipelines.text.rows import MAX_LINE_BYTES, Fault, parse_object
from data_pipelines.text.tokenizer import Tokenizer
from prts_jax.errors import UserError
from prts_jax.paths import PathLike

JSON_LINES = Format("jsonl")
SET = "instructions"


@dataclass(frozen=True)
class InstructionTask:
    """One split of instruction data as `FileTask`.

    Attributes:
      sources: names of the sets; the last is `store.PADDING`.
    """

    split: str
    files: tuple[str, ...]
    file_sets: tuple[str, ...]
    sources: tuple[str, ...]
    tokenizer: Tokenizer
    encode: Encode
    packing: Packing

    @property
    def name(self) -> str:
        """The task's name."""
        return SET

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s examples and faults, in order.

        Raises:
          UserError: the file cannot be read.
        """
        source = self.sources.index(self.file_sets[index])
        for number, line in numbered_rows(self.files[index], MAX_LINE_BYTES):
            if isinstance(line, Damage):
                yield Fault.of(line, number)
            elif self.takes(line):
                yield self._example(line, number, source)

    def takes(self, line: bytes) -> bool:
        """Whether a row belongs to this split, a function of the row's bytes alone."""
        if not self.packing.held_out:
            return True
        random = int.from_bytes(hashlib.sha256(line).digest()[:8], "big") / 2**64
        return (random < self.packing.held_out) == (self.split == "validation")

    def _example(self, line: bytes, number: int, source: int) -> Encoded | Fault:
        row = parse_object(line, number)
        turns = row if isinstance(row, Fault) else turns_of(row, number)
        if isinstance(turns, Fault):
            return turns
        tokens, answers = tokens_of(
            turns, self.encode, self.tokenizer.eos_id, self.packing.template
        )
        most = self.packing.length + 1
        if len(tokens) <= most:
            return Encoded(tokens, source, answers=answers, row=number)
        if self.packing.too_long == "refuse" or not answers[:most].any():
            return Fault("too_long", number, f"{len(tokens):,} tokens; a row has {most:,}")
        return Encoded(tokens[:most], source, answers=answers[:most], truncated=True, row=number)


def open_instructions(
    path: PathLike, tokenizer: Tokenizer, encode: Encode, packing: Packing
) -> dict[str, InstructionTask]:
    """Returns the task of each split of JSON lines: a file or a folder, local or gs://.

    A folder's splits are those that its folders or file names name. A folder with neither, and a
    file, is all `train` except for the held-out rows.

    Raises:
      UserError: no such file, too many sets for a store, or `held_out` for input with splits.
    """
    folder = os.fspath(path)
    is_file = JSON_LINES.takes(folder) and not os.path.isdir(folder)
    named = {} if is_file else splits_of(path, JSON_LINES)
    files = {split: of_split for split, of_split in named.items() if split in SPLITS}
    if files and packing.held_out:
        raise UserError(f"--held_out: {folder} has splits of its own; leave it out")
    if not files:
        everything = [folder] if is_file else files_of(folder, JSON_LINES)
        if not everything or named:
            raise UserError(
                f"no instructions found: {folder} has no file *{', *'.join(JSON_LINES.endings)}; "
                "give --input the folder that holds them, or one of them"
            )
        splits = SPLITS if packing.held_out else SPLITS[:1]
        files = dict.fromkeys(splits, everything)
    home = os.path.dirname(folder) if is_file else folder
    sets = {
        split: tuple(SET if is_file else set_of(file, home, SET) for file in of_split)
        for split, of_split in files.items()
    }
    return {
        split: InstructionTask(
            split, tuple(of_split), sets[split], _sources(sets, folder), tokenizer, encode, packing
        )
        for split, of_split in files.items()
    }


def _sources(sets: Mapping[str, tuple[str, ...]], folder: str) -> tuple[str, ...]:
    """Returns the sets of all splits, so that a source id means the same in each, then padding."""
    names = sorted({name for of_split in sets.values() for name in of_split})
    if PADDING in names or len(names) >= MAX_SETS:
        raise UserError(
            f"{folder}: has {len(names)} sub-folders, each a set; there may be {MAX_SETS - 1}, "
            f"none called {PADDING}"
        )
    return (*names, PADDING)
