"""tokenizer_config.json for a tokenizer that came without one.

Without it AutoTokenizer takes the class of the model's architecture, which splits text in its own
way and adds tokens that the model lacks. PreTrainedTokenizerFast takes the file as it is.
Source: transformers 5.x, compared with the libraries sentencepiece and tokenizers.
"""

import json
from typing import Any

from prts_jax.errors import UserError
from prts_jax.formats.config_json import write_json
from prts_jax.paths import as_path
from prts_jax.special_ids import UNKNOWN, SpecialIds, of_tokenizer, sentencepiece_pieces

CONFIG = "tokenizer_config.json"


def complete_tokenizer(folder: str, ids: SpecialIds, length: int) -> list[str]:
    """Writes tokenizer_config.json into an exported folder whose tokenizer has none; names it.

    The folder has tokenizer.json or tokenizer.model, else nothing is written. The tokenizer's own
    special ids count where the model has none. `length` is its longest sequence, in tokens.

    Raises:
      UserError: the tokenizer is damaged.
    """
    root = as_path(folder)
    files = (root / f"tokenizer{end}" for end in _READERS)
    file = next((file for file in files if file.is_file()), None)
    if file is None or (root / CONFIG).exists():
        return []
    ids = ids.or_else(of_tokenizer(folder))
    try:
        pieces, others = _READERS[file.suffix](file.read_bytes())
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{file.name}: is no tokenizer ({error!s:.80}); name another") from error
    named = {"bos_token": ids.begin, "eos_token": next(iter(ids.ends), None), "pad_token": ids.pad}
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: None if at is None else pieces.get(at) for name, at in named.items()},
        **others,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    write_json(folder, CONFIG, values)
    return [CONFIG]


def _of_json(content: bytes) -> tuple[dict[int, str], dict[str, Any]]:
    tokenizer = json.loads(content)
    vocab = tokenizer["model"].get("vocab", {})
    # Unigram lists [piece, score]; the others map a piece to its id.
    pieces = (
        {at: piece for piece, at in vocab.items()}
        if isinstance(vocab, dict)
        else {at: entry[0] for at, entry in enumerate(vocab)}
    )
    pieces |= {one["id"]: one["content"] for one in tokenizer.get("added_tokens", [])}
    return pieces, {"unk_token": tokenizer["model"].get("unk_token")}


def _of_sentencepiece(content: bytes) -> tuple[dict[int, str], dict[str, Any]]:
    pieces = sentencepiece_pieces(content)
    unknown = next((text for text, kind in pieces if kind == UNKNOWN), None)
    others = {"unk_token": unknown, "add_bos_token": False, "add_eos_token": False}
    return {at: text for at, (text, _) in enumerate(pieces)}, others


_READERS = {".json": _of_json, ".model": _of_sentencepiece}
