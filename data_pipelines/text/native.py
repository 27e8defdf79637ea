"""Tasks of the form text → SentencePiece → end of text, without TensorFlow.

`tasks.py` recognises the seqio tasks of this form; their tokens are the same either way.
"""

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Document, Fault, read_rows
from data_pipelines.text.tokenizer import Tokenizer

# SentencePiece takes about 50 bytes of memory for each byte of a text, and is twice as slow on
# megabytes as on kilobytes.
PIECE_CHARACTERS = 1 << 14
SPACES = (" ", "▁")  # SentencePiece writes a space as the second


class Encoder:
    """Token ids of `SentencePieceProcessor.encode`, followed by the end-of-text id.

    Encodes long texts in parts if the ids stay the same: for a BPE without normalisation and
    without pieces that have a space after another character, no merge crosses the start of a word,
    and the dummy prefix replaces the space of a part's first word. Other tokenizers encode texts
    whole, and so does a text without spaces.
    """

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._eos = self._processor.eos_id()
        self.splits = _words_are_independent(self._processor, model)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text and the end-of-text id: int32 [n]."""
        ids: list[int] = []
        for part in split_at_words(text) if self.splits else (text,):
            ids += self._processor.encode(part)
        ids.append(self._eos)
        return np.array(ids, np.int32)


def split_at_words(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yields a text in parts of at least so many characters, without the space between parts.

    >>> list(split_at_words("one two  three", 3))
    ['one', 'two', ' three']
    """
    begin = 0
    while (space := _word_border(text, begin + characters)) >= 0:
        yield text[begin:space]
        begin = space + 1
    yield text[begin:]


def _word_border(text: str, start: int) -> int:
    """Returns the first space from `start` that follows a word and does not end the text, or -1."""
    space = text.find(" ", max(start, 1))
    while space >= 0 and text[space - 1] in SPACES:
        space = text.find(" ", space + 1)
    return space if space + 1 < len(text) else -1


def _words_are_independent(processor: sentencepiece.SentencePieceProcessor, model: bytes) -> bool:
    # Its classes are created at import time, which type checkers do not see.
    model_proto: Any = vars(sentencepiece_model_pb2)["ModelProto"]
    proto = model_proto.FromString(model)
    normalizer = proto.normalizer_spec
    return (
        proto.trainer_spec.model_type == proto.trainer_spec.BPE
        and not proto.trainer_spec.treat_whitespace_as_suffix
        and normalizer.add_dummy_prefix
        and not normalizer.remove_extra_whitespaces
        and normalizer.escape_whitespaces
        and not normalizer.precompiled_charsmap
        and not any("▁" in piece.piece.lstrip("▁") or " " in piece.piece for piece in proto.pieces)
        # Neighbouring unknown pieces merge, so a space must not be unknown.
        and not processor.is_unknown(processor.piece_to_id("▁"))
    )


@functools.lru_cache(1)
def _encoder(model: bytes) -> Encoder:
    return Encoder(model)


RowReader = Callable[[str, Collection[str]], Iterator[Document | Fault]]
"""(file, known sets) → the file's documents and faults."""


@dataclass(frozen=True)
class NativeTask:
    """One split of a corpus as a picklable `build.FileTask`.

    Attributes:
      name: name of the task.
      split: name of the split.
      files: input files in order.
      sources: names of all sets of the corpus.
      chosen: the sets to tokenize; rows of others are skipped.
      tokenizer: a SentencePiece tokenizer.
      read: a function of a module, or a `functools.partial` of one.
      file_sets: the set of each file, for rows that do not name theirs.
    """

    name: str
    split: str
    files: tuple[str, ...]
    sources: tuple[str, ...]
    chosen: frozenset[str]
    tokenizer: Tokenizer
    read: RowReader = read_rows
    file_sets: tuple[str, ...] = ()

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents and faults, in order.

        Raises:
          UserError: the file cannot be read.
        """
        encoder = _encoder(self.tokenizer.model)
        ids = {name: number for number, name in enumerate(self.sources)}
        for row in self.read(self.files[index], ids):
            if isinstance(row, Fault):
                yield row
                continue
            set_name = self.file_sets[index] if row.set_name is None else row.set_name
            if set_name in self.chosen:
                tokens = encoder.encode(row.text)
                yield Encoded(tokens, ids[set_name], len(row.text.encode()))
