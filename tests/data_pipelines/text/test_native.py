"""The encoder against SentencePiece itself; `test_tasks.py` holds it against seqio."""

import pickle
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data_pipelines.text.native import (
    PIECE_CHARACTERS,
    NativeTask,
    SentencePieceEncoder,
    split_at_words,
)
from data_pipelines.text.rows import Fault, read_documents
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SHAKESPEARE, list_files
from data_pipelines.text.tokenizer import load_tokenizer

MODEL = (EMBEDDED_SHAKESPEARE / "tokenizer.model").read_bytes()
PROCESSOR = sentencepiece.SentencePieceProcessor(model_proto=MODEL)

awkward = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" ▁\n\0ae"), max_size=60
)


@given(text=awkward, characters=st.integers(1, 8))
def test_parts_have_the_tokens_of_the_whole(text: str, characters: int):
    parts = [PROCESSOR.encode(part) for part in split_at_words(text, characters)]
    assert [token for part in parts for token in part] == PROCESSOR.encode(text)


@given(text=awkward, characters=st.integers(1, 8))
def test_parts_joined_by_spaces_are_the_text(text: str, characters: int):
    parts = list(split_at_words(text, characters))
    assert " ".join(parts) == text
    assert all(len(part) >= characters for part in parts[:-1])


def test_a_long_text_encoded_in_parts_has_the_same_tokens():
    scenes = [
        document.text
        for file in list_files(EMBEDDED_SHAKESPEARE, "validation")
        for document in read_documents(file)
    ]
    text = "  ".join(scenes) + " "
    assert len(text) > 10 * PIECE_CHARACTERS
    encoder = SentencePieceEncoder(MODEL, 2)
    assert encoder.splits
    (tokens,) = encoder.encode_all([text])
    assert tokens.tolist() == [*PROCESSOR.encode(text), PROCESSOR.eos_id()]


def changed(**normalizer: bool | bytes) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(MODEL)
    for name, value in normalizer.items():
        setattr(proto.normalizer_spec, name, value)
    return proto.SerializeToString()


def with_piece_across_words() -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(MODEL)
    proto.pieces[-1].piece = "of▁the"
    return proto.SerializeToString()


@pytest.mark.parametrize(
    "model",
    [
        changed(add_dummy_prefix=False),
        changed(remove_extra_whitespaces=True),
        with_piece_across_words(),
    ],
)
def test_tokenizers_with_dependent_words_encode_texts_whole(model: bytes):
    encoder = SentencePieceEncoder(model, 2)
    assert not encoder.splits
    text = " ".join(random.Random(0).choices(["of", "the", "king", " "], k=PIECE_CHARACTERS))
    whole = sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    assert encoder.ids(text) == whole


def test_a_pickled_task_yields_the_chosen_sets(tmp_path: Path):
    tragedies = SHAKESPEARE.sets["tragedies"]
    task = NativeTask(
        name="tragedies",
        split="validation",
        files=tuple(list_files(EMBEDDED_SHAKESPEARE, "validation")),
        sources=tuple(SHAKESPEARE.sets.values()),
        chosen=frozenset([tragedies]),
        tokenizer=load_tokenizer(EMBEDDED_SHAKESPEARE / "tokenizer.model"),
    )
    encoded = list(pickle.loads(pickle.dumps(task)).documents(0))
    texts = [d.text for d in read_documents(task.files[0]) if d.set_name == tragedies]
    assert len(encoded) == len(texts) > 0
    for document, text in zip(encoded, texts, strict=True):
        assert not isinstance(document, Fault)
        assert document.tokens.tolist() == [*PROCESSOR.encode(text), 2]
        assert document.source == task.sources.index(tragedies)
        assert document.text_bytes == len(text.encode())
