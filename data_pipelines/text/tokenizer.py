"""SentencePiece tokenizers: training with Llama's settings, and loading."""

import hashlib
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

from data_pipelines.store.store import TOKENIZER
from data_pipelines.text.rows import read_documents
from data_pipelines.text.sources import list_files
from prts_jax.errors import UserError

BYTE_PIECES = 256
SPECIAL_PIECES = 3


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as a store records it.

    Attributes:
      model: bytes of the SentencePiece model, or of Hugging Face's tokenizer.json.
      sha256: digest of those bytes.
      vocab_size: number of pieces.
      eos_id: the id that ends a document.
      file: name of the model's file in a store.
      beside: name → content of the small files beside it.
    """

    model: bytes
    sha256: str
    vocab_size: int
    eos_id: int
    file: str = TOKENIZER
    beside: Mapping[str, bytes] = field(default_factory=dict)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a SentencePiece model.

    Raises:
      UserError: no such file, not a SentencePiece model, or one without an end-of-text id.
    """
    try:
        model = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the tokenizer {path}: {error.strerror}; give a SentencePiece model"
        ) from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"not a SentencePiece model: {path}; give a tokenizer.model") from error
    if processor.eos_id() < 0:
        raise UserError(f"the tokenizer {path} has no end-of-text id: train it with eos_id")
    return Tokenizer(
        model=model,
        sha256=hashlib.sha256(model).hexdigest(),
        vocab_size=processor.vocab_size(),
        eos_id=processor.eos_id(),
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a BPE with Llama's settings: byte fallback, identity normalisation, split digits.

    Special ids are Llama's (unk 0, bos 1, eos 2, no padding). A text is one sentence, line ends
    included, so that pieces also match words after a line end, which have no space before them.
    The same texts give the same bytes.

    Args:
      texts: documents.
      vocab_size: number of pieces, including 256 bytes and 3 special ones.

    Returns:
      The serialized SentencePiece model.

    Raises:
      UserError: the texts have too few distinct pieces for the vocabulary, or the vocabulary is
        too small for the bytes.
    """
    if vocab_size <= BYTE_PIECES + SPECIAL_PIECES:
        raise UserError(
            f"vocab_size={vocab_size} leaves no room beside {BYTE_PIECES} bytes and "
            f"{SPECIAL_PIECES} special pieces: give at least 512"
        )
    # Read completely first: the trainer would hide an error of the iterator.
    sentences = list(texts)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.99995,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"cannot train {vocab_size} pieces on this text: {reason}") from error
    return model.getvalue()


def train_from_directory(directory: str | os.PathLike[str], vocab_size: int) -> bytes:
    """Trains on the training split of a corpus; see `train_bpe`.

    Raises:
      UserError: as `train_bpe`, `sources.list_files` and `sources.read_documents`.
    """
    files = list_files(directory, "train")
    return train_bpe(
        (document.text for file in files for document in read_documents(file)), vocab_size
    )
