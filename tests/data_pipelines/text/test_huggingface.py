"""tokenizer.json in stores, against the library itself."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from data_pipelines.text.huggingface import PART_CHARACTERS, FastEncoder, split_before_words
from data_pipelines.text.native import encoder_of
from data_pipelines.text.tokenizer import load_tokenizer
from prts_jax.errors import UserError
from tests.data_pipelines.text.hf_tokenizers import (
    END,
    FAMILIES,
    TURN,
    save,
    sentencepiece_like,
    small,
)

TOKENIZERS = {name: small(name) for name in FAMILIES} | {"llama2": sentencepiece_like()}
words = st.sampled_from(["the", "King", "'s", " ", "  ", "\n", "1599", "é", "é", "中", "_", "a\0"])
awkward = st.lists(words | st.characters(exclude_categories=["Cs"]), max_size=30).map("".join)


def encoder(tokenizer: Tokenizer, eos_id: int = 0) -> FastEncoder:
    return FastEncoder(tokenizer.to_str().encode(), {}, eos_id)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(texts=st.lists(awkward, max_size=4))
@settings(max_examples=30)
def test_tokens_are_the_librarys_without_special_tokens(name: str, texts: list[str]):
    theirs = TOKENIZERS[name].encode_batch(texts, add_special_tokens=False)
    ours = encoder(TOKENIZERS[name]).encode_all(texts)
    assert [ids.tolist() for ids in ours] == [[*one.ids, 0] for one in theirs]


@pytest.mark.parametrize("name", FAMILIES)
@given(text=awkward, characters=st.integers(1, 8))
@settings(max_examples=60)
def test_parts_have_the_tokens_of_the_whole(name: str, text: str, characters: int):
    text = f"a b{text}c d{text}"
    parts = list(split_before_words(text, characters))
    assert "".join(parts) == text
    by_part = TOKENIZERS[name].encode_batch(parts, add_special_tokens=False)
    whole = TOKENIZERS[name].encode(text, add_special_tokens=False)
    assert [token for part in by_part for token in part.ids] == whole.ids


def test_long_texts_are_encoded_in_parts_where_that_is_exact():
    text = "the king's men " * (2 * PART_CHARACTERS // 15 + 1)
    for name, tokenizer in TOKENIZERS.items():
        opened = encoder(tokenizer)
        assert opened.splits == (name != "llama2")
        assert opened.ids(text) == tokenizer.encode(text, add_special_tokens=False).ids
    for token in (AddedToken("of the"), AddedToken("king", rstrip=True)):
        tokenizer = small()
        tokenizer.add_tokens([token])
        assert not encoder(tokenizer).splits


def test_special_tokens_in_a_text_are_plain_text_and_other_added_tokens_are_not():
    tokenizer = small()
    ids = encoder(tokenizer, eos_id=7).ids(f"the {END} king <tool>")
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"the {END} king <tool>"
    assert tokenizer.token_to_id(END) not in ids
    assert ids[-1] == tokenizer.token_to_id("<tool>")


def test_truncation_padding_and_dropout_are_off():
    plain = small()
    text = "the king and the queen " * 20
    changed = json.loads(plain.to_str())
    changed["model"]["dropout"] = 0.5
    changed["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    changed["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": END,
    }
    ids = encoder(Tokenizer.from_str(json.dumps(changed))).ids(text)
    assert ids == plain.encode(text, add_special_tokens=False).ids


def test_a_token_that_only_the_config_lists_is_added_as_transformers_does(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    tokenizer = small()
    size = tokenizer.get_vocab_size()
    listed = {"content": "<new>", "special": False, "normalized": False}
    listed |= dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    folder = save(
        tokenizer,
        tmp_path,
        eos_token=END,
        added_tokens_decoder={str(size): listed},
        tokenizer_class="PreTrainedTokenizerFast",
    )
    loaded = load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.vocab_size == size + 1 == len(theirs)
    text = "the<new>king"
    assert encoder_of(loaded).ids(text) == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("files", "flag", "end"),
    [
        ({"tokenizer_config.json": {"eos_token": END}}, "", END),
        ({"tokenizer_config.json": {"eos_token": {"content": TURN}}}, "", TURN),
        ({"special_tokens_map.json": {"eos_token": TURN}}, "", TURN),
        ({"generation_config.json": {"eos_token_id": 1}}, "", TURN),
        ({"config.json": {"eos_token_id": [0]}}, "", END),
        ({"tokenizer_config.json": {"eos_token": TURN}}, END, END),
        ({"tokenizer_config.json": {"eos_token": TURN}}, "0", END),
        ({"config.json": {"eos_token_id": [0, 1]}}, "1", TURN),
    ],
)
def test_the_end_id_is_the_one_that_the_files_name_or_the_flag(
    files: dict[str, Any], flag: str, end: str, tmp_path: Path
):
    tokenizer = small()
    save(tokenizer, tmp_path)
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    loaded = load_tokenizer(tmp_path, flag)
    assert loaded.eos_id == tokenizer.token_to_id(end)
    assert (loaded.file, loaded.vocab_size) == ("tokenizer.json", tokenizer.get_vocab_size())
    assert loaded.beside.keys() == {"tokenizer_config.json"} | files.keys() & {
        "special_tokens_map.json"
    }


@pytest.mark.parametrize(
    ("files", "flag", "message"),
    [
        ({}, "", "does not say which token ends a document; name it with --end_id"),
        ({"tokenizer_config.json": {"eos_token": "none"}}, "", "does not say which token ends"),
        (
            {
                "tokenizer_config.json": {"eos_token": TURN},
                "generation_config.json": {"eos_token_id": [1, 0]},
            },
            "",
            r"a document, <\|endoftext\|> \(0\) or <\|im_end\|> \(1\); name it with --end_id",
        ),
        ({"config.json": {"eos_token_id": 999}}, "", "has no token 999 to end a document"),
        ({}, "999", "--end_id=999: .* has no such token"),
        ({}, "<eos>", "--end_id=<eos>: .* has no such token"),
    ],
)
def test_an_end_id_that_is_unknown_or_ambiguous_is_refused(
    files: dict[str, Any], flag: str, message: str, tmp_path: Path
):
    save(small(), tmp_path)
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path, flag)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "is a tiktoken file, as of the first Llama 3"),
        ("o200k_base.tiktoken", b"", r"no tokenizer.json in .*, only o200k_base.tiktoken: make it"),
        ("vocab.json", b"{}", "only vocab.json: make it with transformers"),
        ("tokenizer.json", b"", "is empty; fetch it again"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("tokenizer.json", b"<!DOCTYPE html><html>", "is a web page"),
        ("tokenizer.json", b'{"architectures": ["Llama"]}', "is JSON but no tokenizer"),
        ("tokenizer.json", b'[{"model": {}}]', "is JSON but no tokenizer"),
        ("tokenizer.json", b'{"version": "1.0", "model": {', "is damaged"),
        ("tokenizer.json", b'{"a": ' * 100_000, "is damaged"),
        (
            "tokenizer.json",
            b'{"version": "2.0", "model": {"type": "Newer"}, "added_tokens": []}',
            r"tokenizers [\d.]+ cannot read it .*pip install --upgrade tokenizers",
        ),
        ("README.md", b"", r"no tokenizer in .* no tokenizer.json and no tokenizer.model"),
    ],
)
def test_another_file_is_named_as_what_it_is(
    name: str, content: bytes, message: str, tmp_path: Path
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_text_that_the_tokenizer_cannot_encode_is_one_line(tmp_path: Path):
    values = json.loads(small().to_str())
    values["model"] = {"type": "WordLevel", "vocab": {END: 0}, "unk_token": "<unk>"}
    values["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="the tokenizer cannot encode a text"):
        encoder_of(load_tokenizer(tmp_path, END)).ids("king")
