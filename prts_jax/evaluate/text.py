"""Text to tokens and back, by the tokenizer that belongs to a checkpoint."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError
from prts_jax.paths import as_path


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, whichever library reads it.

    Attributes:
      path: the file it was read from.
      vocab: number of entries.
      bos: token that begins a text; None if there is none.
      eos: token that ends a text; None if there is none.
      encode: text → ids, without special tokens.
      decode: ids → text, special tokens left out.
    """

    path: str
    vocab: int
    bos: int | None
    eos: int | None
    encode: Callable[[str], list[int]] = field(repr=False)
    decode: Callable[[Sequence[int]], str] = field(repr=False)


def tokenizer_of(checkpoint: str, lineage: Lineage, asked: str = "") -> Tokenizer:
    """Opens the tokenizer of a checkpoint.

    In this order: the one asked for, what was imported with the weights, and what the run's token
    store was made with.

    Args:
      checkpoint: what `layout.resolve` returned.
      lineage: of the checkpoint.
      asked: a folder or a file; "" for the checkpoint's own.

    Raises:
      UserError: there is none, its library is not installed, or the model has fewer entries.
    """
    carried = str(as_path(checkpoint) / layout.TOKENIZER)
    places = [asked] if asked else [carried, str(lineage.config["data"]["train"])]
    for place in filter(None, places):
        found = tokenizer_file(place)
        if found:
            opened = open_tokenizer(found)
            if opened.vocab > lineage.model.vocab:
                raise UserError(
                    f"{found}: has {opened.vocab} entries and the model {lineage.model.vocab}; "
                    "name the model's own with --tokenizer"
                )
            return opened
    raise UserError(
        f"{checkpoint}: no tokenizer in {' or '.join(filter(None, places))}; name its folder or "
        "file with --tokenizer"
    )


def open_tokenizer(file: str) -> Tokenizer:
    """Opens tokenizer.json (by the library tokenizers) or a SentencePiece model.

    Raises:
      UserError: it cannot be read, or its library is not installed.
    """
    try:
        return _fast(file) if file.endswith(".json") else _sentencepiece(file)
    except ImportError as error:
        extra = "hf" if file.endswith(".json") else "data"
        raise UserError(
            f"{file}: reading it needs {error.name}; pip install 'prts_jax[{extra}]'"
        ) from error
    except UserError:
        raise
    except Exception as error:  # both libraries raise whatever their parsers do
        raise UserError(f"{file}: is no tokenizer that can be read ({error})") from error


def tokenizer_file(place: str) -> str:
    """Returns the tokenizer's file in a folder, or the file itself; "" where there is none."""
    root = as_path(place)
    names = [root] if root.is_file() else [root / "tokenizer.json", root / "tokenizer.model"]
    return next((str(path) for path in names if path.is_file()), "")


def _fast(file: str) -> Tokenizer:
    from tokenizers import Tokenizer as FastTokenizer

    opened = FastTokenizer.from_str(as_path(file).read_text())
    special = _special_tokens(file)
    ids = {name: opened.token_to_id(text) if text else None for name, text in special.items()}
    return Tokenizer(
        path=file,
        vocab=opened.get_vocab_size(),
        bos=ids["bos_token"],
        eos=ids["eos_token"],
        encode=lambda text: list(opened.encode(text, add_special_tokens=False).ids),
        decode=lambda tokens: str(opened.decode(list(tokens))),
    )


def _special_tokens(file: str) -> dict[str, str | None]:
    """Reads bos_token and eos_token from tokenizer_config.json, each a text or an object."""
    config = as_path(file).parent / "tokenizer_config.json"
    values: dict[str, Any] = json.loads(config.read_text()) if config.exists() else {}

    def text(name: str) -> str | None:
        value = values.get(name)
        return value.get("content") if isinstance(value, dict) else value

    return {name: text(name) for name in ("bos_token", "eos_token")}


def _sentencepiece(file: str) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    opened = SentencePieceProcessor(model_proto=as_path(file).read_bytes())
    bos, eos = opened.bos_id(), opened.eos_id()
    return Tokenizer(
        path=file,
        vocab=opened.get_piece_size(),
        bos=bos if bos >= 0 else None,
        eos=eos if eos >= 0 else None,
        encode=lambda text: list(opened.encode(text)),
        decode=lambda tokens: str(opened.decode([int(token) for token in tokens])),
    )
