"""Special token ids in the files of tokenizers, as the libraries read them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from prts_jax.errors import UserError
from prts_jax.special_ids import SpecialIds, from_values, of_store, of_tokenizer


@pytest.mark.parametrize(
    "ids",
    [
        {"bos_id": 1, "eos_id": 2, "pad_id": -1},
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        {"bos_id": 3, "eos_id": 2, "pad_id": 1, "bos_piece": "<begin>", "eos_piece": "<|end|>"},
    ],
)
def test_ids_of_a_sentencepiece_model_are_those_of_the_library(
    tmp_path: Path, ids: dict[str, Any]
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a page of text and another page"] * 20),
        model_writer=model,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model.getvalue())
    library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    begin, end, pad = (
        number if number >= 0 else None
        for number in (library.bos_id(), library.eos_id(), library.pad_id())
    )
    assert of_tokenizer(str(tmp_path)) == SpecialIds(begin, (end,), pad)
    assert of_store(str(tmp_path), 7) == SpecialIds(begin, (7,), pad)
    file.write_bytes(b"no model")
    with pytest.raises(UserError, match="is no SentencePiece model"):
        of_tokenizer(str(tmp_path))


ADDED = {"0": {"content": "<s>"}, "1": {"content": "</s>"}, "2": {"content": "<pad>"}}


@pytest.mark.parametrize(
    ("config", "special", "expected"),
    [
        (
            {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}},
            {},
            (0, (1,), None),
        ),
        ({"eos_token": "</s>", "pad_token": None}, {"pad_token": "<pad>"}, (None, (1,), 2)),
        ({"eos_token": "</s>"}, {"eos_token": "<pad>"}, (None, (2,), None)),
        (
            {"eos_token": "</s>", "added_tokens_decoder": ADDED},
            {"eos_token": "<pad>", "bos_token": "<s>"},
            (None, (1,), None),
        ),
        ({"eos_token": "a"}, {}, (None, (3,), None)),
    ],
)
def test_ids_of_a_tokenizer_json_are_those_of_transformers(
    tmp_path: Path, config: Any, special: Any, expected: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocab = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3}
    built = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<s>"))
    built.add_special_tokens(["<s>", "</s>", "<pad>"])
    built.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    assert of_tokenizer(str(tmp_path)) == SpecialIds(*expected)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ends = () if theirs.eos_token_id is None else (theirs.eos_token_id,)
    assert SpecialIds(theirs.bos_token_id, ends, theirs.pad_token_id) == SpecialIds(*expected)


def test_no_tokenizer_has_no_ids(tmp_path: Path) -> None:
    assert of_tokenizer(str(tmp_path)) == SpecialIds()


@pytest.mark.parametrize("value", ["2", 2.0, True, [[2]], {"id": 2}])
def test_an_id_that_is_no_integer_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="config.json: eos_token_id is .*; it must be a token id"):
        from_values({"eos_token_id": value}, "config.json")
