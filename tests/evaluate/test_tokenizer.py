"""Which tokenizer a checkpoint is read with, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError
from prts_jax.evaluate.tokenizer import open_tokenizer, tokenizer_of
from prts_jax.special_ids import SpecialIds
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


@pytest.mark.parametrize("text", ["To be, or not", "Thou  art", "naïve — 東京", "a\nb"])
def test_prompt_and_continuation_are_one_text(text: str) -> None:
    """The prompt ends anywhere, also within a character of several byte pieces."""
    pytest.importorskip("sentencepiece")
    opened = open_tokenizer(str(PLAYS / "tokenizer.model"))
    ids = opened.encode(text)
    for at in range(1, len(ids)):
        before = opened.decode(ids[:at]).rstrip("\N{REPLACEMENT CHARACTER}")
        assert before + opened.continuation(ids[:at], ids[at:]) == opened.decode(ids)


def test_tokens_of_the_config_are_pieces_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    worded.write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    added = {"content": "<|more|>", "special": True, "normalized": False}
    added |= {"single_word": False, "lstrip": False, "rstrip": False}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    config["added_tokens_decoder"] = {"22": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ours = open_tokenizer(str(tmp_path / "tokenizer.json"))
    text = "the cat<|more|>sat </s> on <s>"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert set(ours.pieces) == set(theirs.get_vocab().values()) == set(range(23))
    every = list(range(23))
    assert ours.decode(every) == theirs.decode(every, skip_special_tokens=True)


def test_the_models_own_end_ids_come_first(tmp_path: Path, lineage: Lineage) -> None:
    worded.write_tokenizer(tmp_path / "tokenizer")
    known = trained_on(lineage, Path())
    assert tokenizer_of(str(tmp_path), known).ends == {worded.EOS}
    several = dataclasses.replace(known, special_ids=SpecialIds(0, (1, 19)))
    assert tokenizer_of(str(tmp_path), several).ends == {1, 19}


def test_precedence_is_argument_then_checkpoint_then_store(
    tmp_path: Path, lineage: Lineage
) -> None:
    for name in ("asked", "checkpoint/tokenizer", "store"):
        worded.write_tokenizer(tmp_path / name)
    checkpoint, known = str(tmp_path / "checkpoint"), trained_on(lineage, tmp_path / "store")

    def folder_of(asked: str = "") -> str:
        return str(Path(tokenizer_of(checkpoint, known, asked).path).parent)

    assert folder_of(str(tmp_path / "asked")) == str(tmp_path / "asked")
    assert folder_of(str(tmp_path / "asked" / "tokenizer.json")) == str(tmp_path / "asked")
    assert folder_of() == str(tmp_path / "checkpoint" / "tokenizer")
    (tmp_path / "checkpoint" / "tokenizer" / "tokenizer.json").unlink()
    assert folder_of() == str(tmp_path / "store")


def test_missing_small_or_damaged_tokenizers_are_refused(tmp_path: Path, lineage: Lineage) -> None:
    with pytest.raises(UserError, match="no tokenizer in .*missing; name its folder or file"):
        tokenizer_of("c", lineage, str(tmp_path / "missing"))
    worded.write_tokenizer(tmp_path)
    small = trained_on(lineage, tmp_path, vocab=10)
    with pytest.raises(UserError, match="has 22 entries and the model 10; name the model's own"):
        tokenizer_of("c", small)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match="tokenizer.model: is empty; fetch it again"):
        tokenizer_of("c", small, str(tmp_path / "tokenizer.model"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is JSON but no tokenizer"):
        tokenizer_of("c", small)
