"""Hugging Face's tokenizer.json, read by the library tokenizers as transformers reads it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from prts_jax.errors import UserError, first_line

# The library takes about 140 bytes of memory for each byte of a text.
PART_CHARACTERS = 1 << 18
WORD_BORDER = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_AFTER_WORDS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORD_PATTERNS = frozenset(
    [
        rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
        *(
            rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}{_AFTER_WORDS}"
            for digits in (r"\p{N}{1,3}", r"\p{N}")  # Llama 3, Qwen 2
        ),
    ]
)
"""Patterns that cut a text before the space between two ASCII letters, whatever is around it."""


def open_fast(content: bytes, config: Mapping[str, Any], path: str) -> tokenizers.Tokenizer:
    """Opens a tokenizer.json without truncation, padding and dropout.

    As transformers does, adds the tokens that tokenizer_config.json, `config`, lists and the file
    lacks.

    Raises:
      UserError: not such a file, a damaged one, or one for a newer library.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}); fetch it again") from error
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise UserError(
            f"{path}: is JSON but no tokenizer (it has no section model); give tokenizer.json"
        )
    try:
        opened = tokenizers.Tokenizer.from_str(content.decode())
        opened.no_truncation()
        opened.no_padding()
        if getattr(opened.model, "dropout", None):
            opened.model.dropout = None
        _add_tokens(opened, config)
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(
            f"{path}: tokenizers {tokenizers.__version__} cannot read it ({first_line(error)}); "
            "fetch it again, or update with `pip install --upgrade tokenizers`"
        ) from error
    return opened


def _add_tokens(opened: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Adds the tokens that a config names and the file lacks, as transformers does."""
    added = config.get("added_tokens_decoder") or {}
    for _, token in sorted(added.items(), key=lambda entry: int(entry[0])):
        opened.add_tokens([tokenizers.AddedToken(**token)])
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and opened.token_to_id(text) is not None:
            opened.add_special_tokens([text])


class FastEncoder:
    """Token ids of `Tokenizer.encode_batch` without special tokens, and the end-of-text id.

    Text that looks like a special token, "<|endoftext|>", is encoded as plain text. Long texts are
    encoded in parts if the tokenizer cuts every text at the parts' borders before it merges.
    """

    def __init__(self, content: bytes, config: Mapping[str, Any], eos_id: int):
        self._tokenizer = open_fast(content, config, "tokenizer.json")
        self._tokenizer.encode_special_tokens = True
        self._eos = eos_id
        self.splits = _cuts_at_words(json.loads(content), self._tokenizer)

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a text; raises as `encode_all`."""
        (tokens,) = self._encoded([text])
        return [int(token) for token in tokens]

    def encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Yields the ids of each text and the end-of-text id: int32 [n].

        Raises:
          UserError: the tokenizer cannot encode a text.
        """
        for tokens in self._encoded(texts):
            yield np.append(tokens, np.int32(self._eos))

    def _encoded(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        parts = [list(split_before_words(text)) if self.splits else [text] for text in texts]
        flat = [part for of_text in parts for part in of_text]
        try:
            encoded = iter(self._tokenizer.encode_batch(flat, add_special_tokens=False))
        except Exception as error:  # the library has no class of its own for errors
            raise UserError(
                f"the tokenizer cannot encode a text ({first_line(error)}); give another"
            ) from error
        for of_text in parts:
            yield np.concatenate([np.array(next(encoded).ids, np.int32) for _ in of_text])


def split_before_words(text: str, characters: int = PART_CHARACTERS) -> Iterator[str]:
    """Yields a text in parts of at least so many characters; each but the first begins a word.

    >>> list(split_before_words("one two three", 3))
    ['one', ' two', ' three']
    """
    begin = 0
    while border := WORD_BORDER.search(text, begin + characters):
        yield text[begin : border.start()]
        begin = border.start()
    yield text[begin:]


def _cuts_at_words(values: Mapping[str, Any], opened: tokenizers.Tokenizer) -> bool:
    """Whether the tokenizer cuts every text before the space between two ASCII letters."""
    normalizer, before = values.get("normalizer"), values.get("pre_tokenizer")
    if not isinstance(before, dict) or not isinstance(normalizer, dict | None):
        return False
    steps = before.get("pretokenizers", []) if before.get("type") == "Sequence" else [before]
    cuts = [_cuts(step) for step in steps]
    added = opened.get_added_tokens_decoder().values()
    return (
        (normalizer is None or normalizer.get("type") == "NFC")
        and None not in cuts
        and True in cuts
        and not any(not one.special and (" " in one.content or one.rstrip) for one in added)
    )


def _cuts(step: Mapping[str, Any]) -> bool | None:
    """Whether one pre-tokenizer cuts there; None if it may depend on text across the border."""
    kind = step.get("type")
    if kind == "Digits":
        return False
    if kind == "ByteLevel":
        return bool(step.get("use_regex", True)) or (
            None if step.get("add_prefix_space") else False
        )
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return True if (step.get("pattern") or {}).get("Regex") in WORD_PATTERNS else None
    return None
