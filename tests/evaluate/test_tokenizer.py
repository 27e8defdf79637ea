"""Which tokenizer a checkpoint is read with, and what is refused."""

import dataclasses
from pathlib import Path

import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError
from prts_jax.evaluate.tokenizer import open_tokenizer, tokenizer_of
from tests.checkpoint.tiny import lineage_of, random_params
from tests.evaluate import worded

pytest.importorskip("tokenizers")

PLAYS = Path(__file__).parents[2] / "data_pipelines" / "shakespeare"


@pytest.fixture(scope="module")
def lineage() -> Lineage:
    """Of a model with 48 entries in its vocabulary."""
    return lineage_of(random_params())


def trained_on(lineage: Lineage, store: Path, vocab: int = 48) -> Lineage:
    config = {**lineage.config, "data": {**lineage.config["data"], "train": str(store)}}
    config["model"] = {**config["model"], "vocab": vocab}
    return dataclasses.replace(lineage, config=config)


def test_encode_and_decode_are_inverse(tmp_path: Path) -> None:
    worded.write_tokenizer(tmp_path)
    opened = open_tokenizer(str(tmp_path / "tokenizer.json"))
    assert opened.vocab == len(worded.WORDS) + 2
    assert (opened.bos, opened.eos) == (worded.BOS, worded.EOS)
    ids = opened.encode("the cat sat")
    assert ids == [2 + worded.WORDS.index(word) for word in ("the", "cat", "sat")]
    assert opened.decode(ids) == "the cat sat"


def test_without_its_config_a_tokenizer_has_no_special_tokens(tmp_path: Path) -> None:
    worded.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    opened = open_tokenizer(str(tmp_path / "tokenizer.json"))
    assert opened.bos is opened.eos is None


def test_a_sentencepiece_model_is_read() -> None:
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor(
        model_file=str(PLAYS / "tokenizer.model")
    )
    opened = open_tokenizer(str(PLAYS / "tokenizer.model"))
    text = "To be, or not to be"
    assert opened.encode(text) == processor.encode(text)
    assert opened.decode(opened.encode(text)) == text
    assert (opened.vocab, opened.bos, opened.eos) == (
        processor.get_piece_size(),
        processor.bos_id(),
        processor.eos_id(),
    )


def test_precedence_is_argument_then_checkpoint_then_store(
    tmp_path: Path, lineage: Lineage
) -> None:
    for name in ("asked", "checkpoint/tokenizer", "store"):
        worded.write_tokenizer(tmp_path / name)
    checkpoint, known = str(tmp_path / "checkpoint"), trained_on(lineage, tmp_path / "store")

    def found(asked: str = "") -> str:
        return str(Path(tokenizer_of(checkpoint, known, asked).path).parent)

    assert found(str(tmp_path / "asked")) == str(tmp_path / "asked")
    assert found(str(tmp_path / "asked" / "tokenizer.json")) == str(tmp_path / "asked")
    assert found() == str(tmp_path / "checkpoint" / "tokenizer")
    (tmp_path / "checkpoint" / "tokenizer" / "tokenizer.json").unlink()
    assert found() == str(tmp_path / "store")


def test_missing_small_or_damaged_tokenizers_are_refused(tmp_path: Path, lineage: Lineage) -> None:
    with pytest.raises(UserError, match="no tokenizer in .*missing; name its folder or file"):
        tokenizer_of("c", lineage, str(tmp_path / "missing"))
    worded.write_tokenizer(tmp_path)
    small = trained_on(lineage, tmp_path, vocab=10)
    with pytest.raises(UserError, match="has 22 entries and the model 10; name the model's own"):
        tokenizer_of("c", small)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer that can be read"):
        tokenizer_of("c", small)
