"""The tokenizer of a checkpoint: text to token ids and back."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.store.several import store_shares
from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.tokenizer import check_tokenizer, special_ids_of
from prts_jax.errors import UserError, first_line
from prts_jax.paths import as_path
from prts_jax.special_ids import foreign_form, other_forms, read_json


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer read by the library tokenizers or by SentencePiece.

    Attributes:
      pieces: id → piece; a model's vocabulary may have more ids.
      ends: ids that end a text: the model's, or the tokenizer's own if the model names none.
      begins: whether transformers puts the start token before every text.
      encode: text → ids, without special tokens.
      decode: ids → text, special tokens left out.
    """

    path: str
    pieces: Mapping[int, str] = field(repr=False)
    bos: int | None
    eos: int | None
    ends: frozenset[int]
    begins: bool
    encode: Callable[[str], list[int]] = field(repr=False)
    decode: Callable[[Sequence[int]], str] = field(repr=False)

    @property
    def vocab(self) -> int:
        """Smallest vocabulary of a model that holds every piece."""
        return max(self.pieces, default=-1) + 1

    def continuation(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns the text that `tokens` add to the text of `prompt`.

        Both are decoded together, because SentencePiece drops a space at the start of a text and
        because a character may begin in the prompt.
        """
        before, whole = self.decode(prompt), self.decode([*prompt, *tokens])
        same = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)
        )
        return whole[len(list(same)) :]


def tokenizer_of(checkpoint: str, lineage: Lineage, asked: str = "") -> CheckpointTokenizer:
    """Opens the tokenizer of a checkpoint.

    The order of precedence is: `asked`, a folder or file, the tokenizer imported with the weights,
    the tokenizer of the run's token store.

    Raises:
      UserError: there is none, its library is not installed, or the model's vocabulary is smaller.
    """
    carried = str(as_path(checkpoint) / layout.TOKENIZER)
    if not asked:
        check_tokenizer(checkpoint, lineage)
    folders = [asked] if asked else [carried, *store_shares(lineage.config["data"]["train"])]
    for folder in filter(None, folders):
        file = tokenizer_file(folder)
        if file:
            opened = open_tokenizer(file)
            if opened.vocab > lineage.model.vocab:
                raise UserError(
                    f"{file}: has {opened.vocab} entries and the model {lineage.model.vocab}; "
                    "name the model's own with --tokenizer"
                )
            ids = special_ids_of(checkpoint, lineage)
            own = opened.ends if asked else frozenset()
            return dataclasses.replace(
                opened,
                bos=ids.begin if opened.bos is None else opened.bos,
                eos=next(iter(ids.ends), None) if opened.eos is None else opened.eos,
                ends=own.union(ids.ends) or opened.ends,
            )
    others = next(filter(None, map(other_forms, filter(None, folders))), "")
    raise UserError(
        others
        or f"{checkpoint}: no tokenizer in {' or '.join(filter(None, folders))}; name its folder "
        "or file with --tokenizer"
    )


def open_tokenizer(file: str) -> CheckpointTokenizer:
    """Opens a tokenizer.json (library tokenizers) or a SentencePiece model.

    Raises:
      UserError: it cannot be read, or its library is not installed.
    """
    if remedy := foreign_form(as_path(file).read_bytes()):
        raise UserError(f"{file}: is {remedy}")
    try:
        opened = _fast(file) if file.endswith(".json") else _sentencepiece(file)
    except ImportError as error:
        extra = "hf" if file.endswith(".json") else "data"
        raise UserError(
            f"{file}: reading it needs {error.name}; pip install 'prts_jax[{extra}]'"
        ) from error
    except UserError:
        raise
    except Exception as error:  # both libraries raise their parsers' errors
        raise UserError(
            f"{file}: is no tokenizer that can be read ({first_line(error)}); name another"
        ) from error
    if not opened.pieces:
        raise UserError(f"{file}: is no tokenizer: it has no pieces; name another")
    return opened


def tokenizer_file(path: str) -> str:
    """Returns the tokenizer's file in a folder, or the file itself; "" if there is none."""
    root = as_path(path)
    names = [root] if root.is_file() else [root / "tokenizer.json", root / "tokenizer.model"]
    return next((str(path) for path in names if path.is_file()), "")


def _fast(file: str) -> CheckpointTokenizer:
    from data_pipelines.text.huggingface import open_fast

    config = _config(file)
    opened = open_fast(as_path(file).read_bytes(), config, file)
    bos, eos = (_id(opened, config, name) for name in ("bos_token", "eos_token"))
    return CheckpointTokenizer(
        path=file,
        pieces={at: piece for piece, at in opened.get_vocab().items()},
        bos=bos,
        eos=eos,
        ends=frozenset() if eos is None else frozenset({eos}),
        begins=config.get("add_bos_token", opened.encode("").ids[:1] == [bos]),
        encode=lambda text: list(opened.encode(text, add_special_tokens=False).ids),
        decode=lambda tokens: str(opened.decode(list(tokens))),
    )


def _config(file: str) -> dict[str, Any]:
    """Returns the tokenizer_config.json beside a tokenizer, or {}; its special tokens are strings.

    Raises:
      UserError: it is no JSON object, or cannot be read.
    """
    values = read_json(as_path(file).parent / "tokenizer_config.json")
    return {
        name: value.get("content") if isinstance(value, dict) and name.endswith("_token") else value
        for name, value in values.items()
    }


def _id(opened: Any, config: Mapping[str, Any], name: str) -> int | None:
    text = config.get(name)
    return opened.token_to_id(text) if isinstance(text, str) else None


def _sentencepiece(file: str) -> CheckpointTokenizer:
    from sentencepiece import SentencePieceProcessor

    opened = SentencePieceProcessor(model_proto=as_path(file).read_bytes())
    bos, eos, unknown = opened.bos_id(), opened.eos_id(), opened.unk_id()
    return CheckpointTokenizer(
        path=file,
        pieces={at: opened.id_to_piece(at) for at in range(opened.get_piece_size())},
        bos=bos if bos >= 0 else None,
        eos=eos if eos >= 0 else None,
        ends=frozenset({eos} if eos >= 0 else ()),
        begins=bool(_config(file).get("add_bos_token", False)),
        encode=lambda text: list(opened.encode(text)),
        # SentencePiece writes unknown pieces as " ⁇ "; transformers leaves them out.
        decode=lambda tokens: str(opened.decode([int(t) for t in tokens if t != unknown])),
    )
