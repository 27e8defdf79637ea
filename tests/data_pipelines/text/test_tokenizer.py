from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE
from data_pipelines.text.tokenizer import load_tokenizer, train_bpe, train_from_directory
from prts_jax.errors import UserError

SHIPPED = EMBEDDED_SHAKESPEARE / "tokenizer.model"


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED))


def test_training_reproduces_the_shipped_tokenizer():
    assert train_from_directory(EMBEDDED_SHAKESPEARE, 1024) == SHIPPED.read_bytes()


def test_special_ids_are_llamas(processor: sentencepiece.SentencePieceProcessor):
    assert processor.vocab_size() == 1024
    assert processor.id_to_piece([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (0, 1, 2)
    assert processor.pad_id() == -1
    assert processor.is_byte(3)
    assert processor.is_byte(258)
    assert not processor.is_byte(259)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁")))
def test_decoding_restores_any_text(text: str):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED))
    tokens = processor.encode(text)
    assert processor.decode(tokens) == text
    assert processor.unk_id() not in tokens


def test_digits_are_split():
    model = train_bpe(["1599 1599 1599 the the the then"] * 50, 275)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).encode("1599", out_type=str)
    assert [piece for piece in pieces if piece != "▁"] == ["1", "5", "9", "9"]


def test_a_loaded_tokenizer_has_its_digest_size_and_end_of_text_id(tmp_path: Path):
    tokenizer = load_tokenizer(SHIPPED)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (1024, 2)
    assert tokenizer.model == SHIPPED.read_bytes()


def test_bad_input_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "none.model")
    wrong = tmp_path / "wrong.model"
    wrong.write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        load_tokenizer(wrong)
    with pytest.raises(UserError, match="vocab_size=259 leaves no room"):
        train_bpe(["text"], 259)
    with pytest.raises(UserError, match=r"cannot train 1024 pieces on this text: .*too high"):
        train_bpe(["a b c"], 1024)
    with pytest.raises(UserError, match="cannot train"):
        train_bpe([], 1024)
