"""Tokenizers of token stores: loading, and training of SentencePiece with Llama's settings."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sentencepiece
from etils import epath

from data_pipelines.store.index import TOKENIZER
from data_pipelines.text.rows import read_documents
from data_pipelines.text.sources import list_files
from prts_jax.errors import UserError
from prts_jax.paths import PathLike, as_path
from prts_jax.special_ids import (
    foreign_form,
    from_values,
    of_tokenizer,
    other_forms,
    read_json,
)

BYTE_PIECES = 256
SPECIAL_PIECES = 3
MAX_VOCABULARY = 1 << 31  # ids are int32

TOKENIZER_CONFIG = "tokenizer_config.json"
BESIDE = (
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Files beside a tokenizer that belong to it."""

TOKENIZER_FILES = ("tokenizer.json", TOKENIZER)


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as a store records it.

    Attributes:
      model: bytes of the SentencePiece model, or of Hugging Face's tokenizer.json.
      sha256: digest of those bytes.
      eos_id: the id that ends a document.
      file: name of the model's file in a store.
      beside: name → content of the small files beside it, `BESIDE`.
    """

    model: bytes
    sha256: str
    vocab_size: int
    eos_id: int
    bos_id: int | None = None
    file: str = TOKENIZER
    beside: Mapping[str, bytes] = field(default_factory=dict, hash=False)

    @property
    def config(self) -> dict[str, Any]:
        """The values of tokenizer_config.json; {} without one."""
        return dict(json.loads(self.beside.get(TOKENIZER_CONFIG, b"{}")))


def load_tokenizer(path: PathLike, end_id: str = "") -> Tokenizer:
    """Reads a SentencePiece model or a tokenizer.json.

    Args:
      path: the file, or a folder with one of them, local or gs://; with both, transformers and this
        function read tokenizer.json.
      end_id: id or text of the token that ends a document. By default the one that a
        SentencePiece model names, or that all of tokenizer_config.json, generation_config.json and
        config.json beside a tokenizer.json name.

    Raises:
      UserError: no such file, neither of the two, or no single id that ends a document.
    """
    file = _file_of(as_path(path))
    try:
        content = file.read_bytes()
        others = {name: file.parent / name for name in BESIDE}
        beside = {name: other.read_bytes() for name, other in others.items() if other.is_file()}
    except OSError as error:
        raise UserError(
            f"cannot read the tokenizer {path}: {error.strerror or error}; give a SentencePiece "
            "model or a tokenizer.json"
        ) from error
    if remedy := foreign_form(content):
        raise UserError(f"not a SentencePiece model or tokenizer.json: {file} is {remedy}")
    if file.suffix == ".json" or content.lstrip()[:1] == b"{":
        return _load_fast(content, beside, str(file), end_id)
    return _load_sentencepiece(content, beside, str(file), end_id)


def _file_of(path: epath.Path) -> epath.Path:
    """Returns the tokenizer's file in a folder, or the path itself if it is no folder."""
    if not path.is_dir():
        return path
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            return path / name
    none = f"no tokenizer in {path}: it has no {' and no '.join(TOKENIZER_FILES)}"
    raise UserError(other_forms(str(path)) or none)


def _load_fast(content: bytes, beside: Mapping[str, bytes], file: str, end_id: str) -> Tokenizer:
    try:
        from data_pipelines.text.huggingface import open_fast
    except ModuleNotFoundError as error:
        raise UserError(
            f"{file}: reading it needs {error.name}; pip install 'prts_jax[data]'"
        ) from error
    opened = open_fast(content, read_json(as_path(file).parent / TOKENIZER_CONFIG), file)
    special = of_tokenizer(file)
    pieces = opened.get_vocab(with_added_tokens=True)
    size = max(pieces.values(), default=-1) + 1
    if size > MAX_VOCABULARY:
        raise UserError(f"{file}: has the id {size - 1}, beyond int32; fetch it again")
    ends = {*special.ends, *_ends_beside(file)}
    if end_id:
        ends = {_id_of(end_id, pieces, file)}
    if len(ends) != 1:
        name = {token: text for text, token in pieces.items()}
        listed = " or ".join(f"{name.get(end)} ({end})" for end in sorted(ends))
        raise UserError(
            f"{file}: its folder does not say which token ends a document"
            + (f", {listed}" if ends else "")
            + "; name it with --end_id"
        )
    (end,) = ends
    if end not in pieces.values():
        raise UserError(f"{file}: has no token {end} to end a document; name it with --end_id")
    return Tokenizer(
        model=content,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=size,
        eos_id=end,
        bos_id=special.begin,
        file="tokenizer.json",
        beside=beside,
    )


def _ends_beside(file: str) -> Iterator[int]:
    """Yields the end ids that the model's configs beside a tokenizer name."""
    for name in ("generation_config.json", "config.json"):
        config = as_path(file).parent / name
        yield from from_values(read_json(config), str(config)).ends


def _id_of(token: str, pieces: Mapping[str, int], file: str) -> int:
    """Returns the id of a token given by its text or as a number."""
    # Digits are an id: every vocabulary also has them as pieces, which end no document.
    known = token.isdecimal() and int(token) in pieces.values()
    if known or (not token.isdecimal() and token in pieces):
        return int(token) if known else pieces[token]
    raise UserError(f"--end_id={token}: {file} has no such token; give its id or its text")


def _load_sentencepiece(
    content: bytes, beside: Mapping[str, bytes], file: str, end_id: str
) -> Tokenizer:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise UserError(
            f"not a SentencePiece model: {file}; give a tokenizer.model or a tokenizer.json"
        ) from error
    end, begin = processor.eos_id(), processor.bos_id()
    if end_id:
        pieces = {processor.id_to_piece(token): token for token in range(processor.vocab_size())}
        end = _id_of(end_id, pieces, file)
    if end < 0:
        raise UserError(
            f"the tokenizer {file} has no end-of-text id: name one of its pieces with --end_id"
        )
    return Tokenizer(
        model=content,
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=processor.vocab_size(),
        eos_id=end,
        bos_id=None if begin < 0 else begin,
        beside=beside,
    )


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """Trains a BPE with Llama's settings: byte fallback, identity normalisation, split digits.

    Special ids are Llama's (unk 0, bos 1, eos 2, no padding). A text is one sentence, line ends
    included, so that pieces also match words after a line end, which have no space before them. The
    same texts give the same bytes. Returns the serialized SentencePiece model; its `vocab_size`
    pieces include 256 bytes and 3 special ones.

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


def train_from_directory(directory: PathLike, vocab_size: int) -> bytes:
    """Trains on the training split of a corpus; see `train_bpe`.

    Raises:
      UserError: as `train_bpe`, `sources.list_files` and `sources.read_documents`.
    """
    files = list_files(directory, "train")
    return train_bpe(
        (document.text for file in files for document in read_documents(file)), vocab_size
    )
