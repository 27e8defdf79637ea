"""Ids of the tokens that begin a text, end it and pad it, from a tokenizer's files.

The rules are those of transformers: special_tokens_map.json counts only if tokenizer_config.json
lists no `added_tokens_decoder`; a SentencePiece model has the ids of its control pieces.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.errors import UserError, storage_error
from prts_jax.paths import as_path

NAMES = ("bos_token", "eos_token", "pad_token")
"""Keys of tokenizer_config.json, in the order begin, end, pad; with "_id", those of config.json."""

OTHER_FORMS = (".tiktoken", "vocab.json", "merges.txt", "vocab.txt", ".spm", "tekken.json")
"""Endings of the names of tokenizer files that are not read."""

_FOREIGN = (
    (
        re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n"),
        "a tiktoken file, as of the first Llama 3; give the tokenizer.json of the same model",
    ),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS; run `git lfs pull` there"),
    (re.compile(rb"(?i)\s*<(!doctype|html)"), "a web page; fetch the file itself"),
    (re.compile(rb"\s*\Z"), "empty; fetch it again"),
)
"""Beginnings of files that pass for a tokenizer, and what they are, with the remedy."""


@dataclass(frozen=True)
class SpecialIds:
    """Ids that begin a text, end one (each of them) and fill rows; None if there is none."""

    begin: int | None = None
    ends: tuple[int, ...] = ()
    pad: int | None = None

    def or_else(self, other: "SpecialIds") -> "SpecialIds":
        """Returns these ids; those that are not stated come from `other`."""
        return SpecialIds(
            other.begin if self.begin is None else self.begin,
            self.ends or other.ends,
            other.pad if self.pad is None else self.pad,
        )


def from_values(values: Mapping[str, Any], where: str) -> SpecialIds:
    """Reads `bos_token_id`, `eos_token_id` (one or a list) and `pad_token_id` of a config.

    A negative id is none. Messages name the file, `where`.

    Raises:
      UserError: an id is no integer.
    """
    stated: list[tuple[int, ...]] = []
    for name in NAMES:
        key = f"{name}_id"
        value = values.get(key)
        listed = value if isinstance(value, list) and name == "eos_token" else [value]
        if any(one is not None and not _is_id(one) for one in listed):
            raise UserError(f"{where}: {key} is {value!r:.80}; it must be a token id")
        stated.append(tuple(one for one in listed if one is not None and one >= 0))
    begin, ends, pad = stated
    return SpecialIds(begin[0] if begin else None, ends, pad[0] if pad else None)


def of_store(directory: str, end: int) -> SpecialIds:
    """Returns the ids of a token store: the id that ends its documents, and its tokenizer's."""
    return SpecialIds(ends=(end,)).or_else(of_tokenizer(directory))


def foreign_form(content: bytes) -> str:
    """Returns what a file that passes for a tokenizer is, with the remedy; "" if nothing is known.

    Args:
      content: its bytes.
    """
    return next((remedy for start, remedy in _FOREIGN if start.match(content)), "")


def other_forms(folder: str) -> str:
    """Returns what a folder without a readable tokenizer holds, with the remedy; "" if nothing."""
    root = as_path(folder)
    names = [file.name for file in root.iterdir()] if root.is_dir() else []
    others = ", ".join(sorted(name for name in names if name.endswith(OTHER_FORMS)))
    if not others:
        return ""
    return (
        f"no tokenizer.json in {folder}, only {others}: make it with transformers, "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
    )


def of_tokenizer(path: str) -> SpecialIds:
    """Returns the ids that a folder's or file's tokenizer names; none if there is no tokenizer.

    Raises:
      UserError: a file is damaged.
    """
    root = as_path(path)
    folder = root.parent if root.is_file() else root
    files = [root] if root.is_file() else [folder / "tokenizer.json", folder / "tokenizer.model"]
    file = next((one for one in files if one.is_file()), None)
    if file is None:
        return SpecialIds()
    content = file.read_bytes()
    if remedy := foreign_form(content):
        raise UserError(f"{file}: is {remedy}")
    if file.suffix == ".model":
        try:
            return _named(folder).or_else(_of_sentencepiece(content))
        except (IndexError, ValueError, AttributeError) as error:
            raise UserError(f"{file}: is no SentencePiece model; copy it again") from error
    return _named(folder, read_json(file))


def _named(folder: Any, tokenizer: Mapping[str, Any] | None = None) -> SpecialIds:
    """Returns the ids of the tokens named in tokenizer_config.json and special_tokens_map.json."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json(folder / "special_tokens_map.json")}
    ids: dict[str, int] = {}
    tokenizer = tokenizer or {}
    try:
        vocab = tokenizer.get("model", {}).get("vocab", {})
        # Unigram lists [piece, score]; the others map a piece to its id.
        ids |= vocab if isinstance(vocab, dict) else {p[0]: at for at, p in enumerate(vocab)}
        ids |= {one["content"]: one["id"] for one in tokenizer.get("added_tokens", [])}
        ids |= read_json(folder / "added_tokens.json")
        decoder = config.get("added_tokens_decoder", {})
        ids |= {_text(token): int(at) for at, token in decoder.items()}
        begin, end, pad = (ids.get(_text(config.get(name))) for name in NAMES)
        if wrong := [one for one in (begin, end, pad) if one is not None and not _is_id(one)]:
            raise ValueError(f"{wrong[0]!r:.40} is no token id")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: its tokenizer's files cannot be read ({error!r:.80}); copy them again"
        ) from error
    return SpecialIds(begin, () if end is None else (end,), pad)


def _is_id(value: Any) -> bool:
    """Returns whether a value is an int32, as token ids are; negative ones stand for none."""
    return type(value) is int and abs(value) < 1 << 31


def _text(token: Any) -> str:
    """Returns the text of a token that is a string or an object with "content"."""
    return str(token["content"] if isinstance(token, dict) else token)


def read_json(file: Any) -> dict[str, Any]:
    """Returns the object in a JSON file of a tokenizer; {} without the file.

    Raises:
      UserError: the file is damaged, or no JSON object, or cannot be read.
      StorageError: the storage failed.
    """
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{file}: is damaged ({error!s:.80}); copy it again") from error
    except OSError as error:
        raise storage_error(f"{file}: cannot be read", error) from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: is damaged (holds no JSON object); copy it again")
    return values


def _of_sentencepiece(content: bytes) -> SpecialIds:
    """Returns the ids of `SentencePieceProcessor.bos_id`, `eos_id` and `pad_id`.

    Training does not need the library, so it may be absent. Fields of sentencepiece_model.proto:
    ModelProto has pieces (1: text 1, type 3) and trainer_spec (2), which names the three pieces
    (46, 47, 48).
    """
    names = {46: "<s>", 47: "</s>", 48: "<pad>"}
    for field, value in _fields(content):
        if field == 2:
            spec = dict(_fields(value))
            names = {key: spec[key].decode() if key in spec else names[key] for key in names}
    pieces = enumerate(sentencepiece_pieces(content))
    control = {text: at for at, (text, kind) in pieces if kind == _CONTROL}
    begin, end, pad = (control.get(name) for name in names.values())
    return SpecialIds(begin, () if end is None else (end,), pad)


def sentencepiece_pieces(content: bytes) -> list[tuple[str, int]]:
    """Returns text and type of each piece of a SentencePiece model, by id.

    Raises:
      IndexError, ValueError, AttributeError: the content is no such model.
    """
    pieces = (dict(_fields(value)) for field, value in _fields(content) if field == 1)
    return [(piece.get(1, b"").decode(), piece.get(3, _NORMAL)) for piece in pieces]


_NORMAL, UNKNOWN, _CONTROL = 1, 2, 3
"""Types of pieces."""


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of each field of a protocol buffer.

    Raises:
      IndexError: the content is no protocol buffer.
    """
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        kind, size = key & 7, {1: 8, 5: 4}.get(key & 7, 0)
        if kind == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(content, at)
        elif not size:
            raise IndexError(f"wire type {kind}")
        if at + size > len(content):
            raise IndexError("cut short")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
