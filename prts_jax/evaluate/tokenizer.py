"""The tokenizer of a checkpoint: text to token ids and back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError
from prts_jax.paths import as_path


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer read by the library tokenizers or by SentencePiece.

    Attributes:
      path: its file.
      vocab: number of entries.
      bos: id of the start token; None if there is none.
      eos: id of the end token; None if there is none.
      encode: text → ids, without special tokens.
      decode: ids → text, special tokens left out.
    """

    path: str
    vocab: int
    bos: int | None
    eos: int | None
    encode: Callable[[str], list[int]] = field(repr=False)
    decode: Callable[[Sequence[int]], str] = field(repr=False)


def tokenizer_of(checkpoint: str, lineage: Lineage, asked: str = "") -> CheckpointTokenizer:
    """Opens the tokenizer of a checkpoint.

    The order of precedence is: `asked`, the tokenizer imported with the weights, the tokenizer of
    the run's token store.

    Args:
      checkpoint: the result of `layout.resolve`.
      lineage: lineage of the checkpoint.
      asked: folder or file of the user's choice; "" for the checkpoint's own.

    Raises:
      UserError: there is none, its library is not installed, or the model's vocabulary is smaller.
    """
    carried = str(as_path(checkpoint) / layout.TOKENIZER)
    folders = [asked] if asked else [carried, str(lineage.config["data"]["train"])]
    for folder in filter(None, folders):
        file = tokenizer_file(folder)
        if file:
            opened = open_tokenizer(file)
            if opened.vocab > lineage.model.vocab:
                raise UserError(
                    f"{file}: has {opened.vocab} entries and the model {lineage.model.vocab}; "
                    "name the model's own with --tokenizer"
                )
            return opened
    raise UserError(
        f"{checkpoint}: no tokenizer in {' or '.join(filter(None, folders))}; name its folder or "
        "file with --tokenizer"
    )


def open_tokenizer(file: str) -> CheckpointTokenizer:
    """Opens a tokenizer.json (library tokenizers) or a SentencePiece model.

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
    except Exception as error:  # both libraries raise their parsers' errors
        raise UserError(f"{file}: is no tokenizer that can be read ({error})") from error


def tokenizer_file(path: str) -> str:
    """Returns the tokenizer's file in a folder, or the file itself; "" if there is none."""
    root = as_path(path)
    names = [root] if root.is_file() else [root / "tokenizer.json", root / "tokenizer.model"]
    return next((str(path) for path in names if path.is_file()), "")


def _fast(file: str) -> CheckpointTokenizer:
    from tokenizers import Tokenizer

    opened = Tokenizer.from_str(as_path(file).read_text())
    special = _special_tokens(file)
    ids = {name: opened.token_to_id(text) if text else None for name, text in special.items()}
    return CheckpointTokenizer(
        path=file,
        vocab=opened.get_vocab_size(),
        bos=ids["bos_token"],
        eos=ids["eos_token"],
        encode=lambda text: list(opened.encode(text, add_special_tokens=False).ids),
        decode=lambda tokens: str(opened.decode(list(tokens))),
    )


def _special_tokens(file: str) -> dict[str, str | None]:
    """Reads bos_token and eos_token, each a string or an object, from tokenizer_config.json."""
    config = as_path(file).parent / "tokenizer_config.json"
    values: dict[str, Any] = json.loads(config.read_text()) if config.exists() else {}

    def text(name: str) -> str | None:
        value = values.get(name)
        return value.get("content") if isinstance(value, dict) else value

    return {name: text(name) for name in ("bos_token", "eos_token")}


def _sentencepiece(file: str) -> CheckpointTokenizer:
    from sentencepiece import SentencePieceProcessor

    opened = SentencePieceProcessor(model_proto=as_path(file).read_bytes())
    bos, eos = opened.bos_id(), opened.eos_id()
    return CheckpointTokenizer(
        path=file,
        vocab=opened.get_piece_size(),
        bos=bos if bos >= 0 else None,
        eos=eos if eos >= 0 else None,
        encode=lambda text: list(opened.encode(text)),
        decode=lambda tokens: str(opened.decode([int(token) for token in tokens])),
    )
