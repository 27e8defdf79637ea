"""Tasks of the form text → token ids → end of text, without TensorFlow.

`tasks.py` recognises the seqio tasks of this form; their tokens are the same either way.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.store.index import TOKENIZER
from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Document, Fault, read_rows
from data_pipelines.text.tokenizer import Tokenizer

# SentencePiece takes about 50 bytes of memory for each byte of a text, and is twice as slow on
# megabytes as on kilobytes.
PIECE_CHARACTERS = 1 << 14
SPACES = (" ", "▁")  # SentencePiece writes a space as the second

# Texts of one call of an encoder: enough for its threads, and little memory.
BATCH_CHARACTERS = 1 << 21


class Encoder(Protocol):
    """A tokenizer's function from texts to ids."""

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a text."""

    def encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yields the ids of each text and the end-of-text id: int32 [n]."""


class SentencePieceEncoder:
    """Token ids of `SentencePieceProcessor.encode`, followed by the end-of-text id.

    Encodes long texts in parts if the ids stay the same: for a BPE without normalisation and
    without pieces that have a space after another character, no merge crosses the start of a word,
    and the dummy prefix replaces the space of a part's first word. Other tokenizers encode texts
    whole, and so does a text without spaces.
    """

    def __init__(self, model: bytes, eos_id: int):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._eos = eos_id
        self.splits = _words_are_independent(self._processor, model)

    def ids(self, text: str) -> list[int]:
        """Implements `Encoder.ids`."""
        parts = split_at_words(text) if self.splits else (text,)
        return [token for part in parts for token in self._processor.encode(part)]

    def encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Implements `Encoder.encode_all`."""
        for text in texts:
            yield np.array([*self.ids(text), self._eos], np.int32)


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
def encoder_of(tokenizer: Tokenizer) -> Encoder:
    """Returns the encoder of a tokenizer."""
    if tokenizer.file == TOKENIZER:
        return SentencePieceEncoder(tokenizer.model, tokenizer.eos_id)
    from data_pipelines.text.huggingface import FastEncoder

    return FastEncoder(tokenizer.model, tokenizer.config, tokenizer.eos_id)


RowReader = Callable[[str, Collection[str]], Iterator[Document | Fault]]
"""(file, known sets) → the file's documents and faults."""


@dataclass(frozen=True)
class NativeTask:
    """One split of a corpus as a picklable `FileTask`.

    Attributes:
      sources: names of all sets of the corpus.
      chosen: the sets to tokenize; rows of others are skipped.
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
        encoder = encoder_of(self.tokenizer)
        ids = {name: number for number, name in enumerate(self.sources)}
        chosen = (
            row
            for row in self.read(self.files[index], ids)
            if isinstance(row, Fault) or self._set_of(row, index) in self.chosen
        )
        for batch in _batches(chosen):
            texts = [row.text for row in batch if isinstance(row, Document)]
            encoded = encoder.encode_all(texts)
            for row in batch:
                if isinstance(row, Fault):
                    yield row
                else:
                    source = ids[self._set_of(row, index)]
                    size = len(row.text.encode())
                    yield Encoded(next(encoded), source, size, row=row.row)

    def _set_of(self, row: Document, index: int) -> str:
        return self.file_sets[index] if row.set_name is None else row.set_name


def _batches(rows: Iterable[Document | Fault]) -> Iterator[list[Document | Fault]]:
    """Yields rows in order in batches of at least `BATCH_CHARACTERS` of text."""
    batch: list[Document | Fault] = []
    characters = 0
    for row in rows:
        batch.append(row)
        # A row counts even if its text is short, since its tokens' arrays take memory too.
        characters += 1_000 + (0 if isinstance(row, Fault) else len(row.text))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch
