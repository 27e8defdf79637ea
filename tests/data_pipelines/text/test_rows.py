import itertools
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.text.rows import (
    CHAT_FAULTS,
    FAULTS,
    Document,
    Fault,
    parse_row,
    read_documents,
    read_rows,
)
from prts_jax.errors import UserError


def row(text: str, set_name: str = "RedPajamaC4") -> bytes:
    return json.dumps({"text": text, "meta": {"redpajama_set_name": set_name}}).encode()


def written(folder: Path, content: bytes, frames: int = 1) -> Path:
    cuts = [len(content) * i // frames for i in range(frames + 1)]
    path = folder / "file.jsonl.zst"
    path.write_bytes(
        b"".join(zstandard.compress(content[a:b]) for a, b in itertools.pairwise(cuts))
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


characters = st.characters(exclude_categories=["Cs"])


@given(
    texts=st.lists(st.text(characters, min_size=1)),
    frames=st.integers(1, 4),
    end=st.sampled_from([b"", b"\n", b"\n\n"]),
)
def test_characters_and_frames_do_not_change_the_documents(
    folder: Path, texts: list[str], frames: int, end: bytes
):
    path = written(folder, b"\n".join(map(row, texts)) + end, frames)
    assert [document.text for document in read_documents(path)] == texts


def test_a_row_keeps_its_text_exactly():
    text = " two\u2028lines\r\n\tand\x00 more "
    assert parse_row(row(text, "RedPajamaBook"), 1) == Document(text, "RedPajamaBook", 1)


@pytest.fixture(scope="module")
def several_blocks() -> tuple[list[str], bytes]:
    """Texts, and a zstandard frame of their rows; random digits fill several blocks."""
    texts = [str(pow(3, i, 10**60 + 7)) for i in range(4500)]
    return texts, zstandard.compress(b"\n".join(map(row, texts)))


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_a_truncated_frame_is_one_fault(
    folder: Path, several_blocks: tuple[list[str], bytes], share: float
):
    _, whole = several_blocks
    path = folder / "file.jsonl.zst"
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    [fault] = read_rows(path)  # the checksum of the only frame is missing
    assert fault == Fault("truncated_file", 1, lost_bytes=path.stat().st_size)
    with pytest.raises(UserError, match=r"truncated_file: .*file\.jsonl\.zst, line \d+: .*fetch"):
        list(read_documents(path))


def test_a_corrupt_file_gives_what_comes_before_the_damage(folder: Path):
    path = folder / "file.jsonl.zst"
    path.write_bytes(zstandard.compress(row("good") + b"\n") + b"this is not zstandard at all")
    assert list(read_rows(path)) == [
        Document("good", "RedPajamaC4", 1),
        Fault("corrupt_file", 2, lost_bytes=len(b"this is not zstandard at all")),
    ]


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*none\.zst: No such file"):
        list(read_rows(tmp_path / "none.zst"))


BAD = [
    (b"{not json", "bad_json"),
    (b'"text"', "bad_json"),
    (b"[" * 100_000, "bad_json"),
    (b'{"text": ' + b"9" * 5000 + b"}", "bad_json"),
    (b"\xff\xfe{}", "invalid_utf8"),
    (b'{"text": "caf\xe9", "meta": {"redpajama_set_name": "a"}}', "invalid_utf8"),
    ("{}".encode("utf-16-be"), "bad_json"),
    (b"{}", "missing_text"),
    (b'{"text": 3, "meta": {"redpajama_set_name": "a"}}', "text_not_a_string"),
    (b'{"text": null, "meta": {"redpajama_set_name": "a"}}', "text_not_a_string"),
    (b'{"text": "a\\ud800b", "meta": {"redpajama_set_name": "a"}}', "lone_surrogate"),
    (b'{"text": "", "meta": {"redpajama_set_name": "a"}}', "empty_text"),
    (b'{"text": "a"}', "missing_set"),
    (b'{"text": "a", "meta": "C4"}', "missing_set"),
    (b'{"text": "a", "meta": {}}', "missing_set"),
    (b'{"text": "a", "meta": {"redpajama_set_name": 1}}', "unknown_set"),
    (row("a", "RedPajamaRecipes"), "unknown_set"),
    (row("x" * 2000), "enormous_line"),
]


@pytest.mark.parametrize(("line", "kind"), BAD)
def test_a_bad_row_has_its_kind_and_line_and_good_ones_around_it(
    folder: Path, line: bytes, kind: str
):
    path = written(folder, b"\n".join([row("before"), b"", line, row("after")]), frames=2)
    limit = 1000 if kind == "enormous_line" else 1 << 20
    before, fault, after = read_rows(path, {"RedPajamaC4"}, limit)
    assert before == Document("before", "RedPajamaC4", 1)
    assert after == Document("after", "RedPajamaC4", 4)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.line) == (kind, 3)
    message = str(fault.error(path))
    assert message.startswith(f"{kind}: {path}, line 3: ")
    assert "\n" not in message


def test_every_kind_is_tested():
    here = {kind for _, kind in BAD} | {"truncated_file", "corrupt_file"}
    assert here == FAULTS.keys() - CHAT_FAULTS.keys()  # those are tested in test_chat.py


good_lines = st.text(characters, min_size=1).map(row)
any_lines = st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" "))
json_lines = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["text", "meta", "redpajama_set_name", ""]), inner)
    ),
).map(lambda value: json.dumps(value).encode())


@given(lines=st.lists(good_lines | any_lines | json_lines), frames=st.integers(1, 3))
def test_every_line_is_one_document_or_one_fault(folder: Path, lines: list[bytes], frames: int):
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    rows = list(read_rows(written(folder, b"\n".join(lines), frames)))
    assert len(rows) == len(numbers)
    for number, line, result in zip(numbers, filter(bytes.strip, lines), rows, strict=True):
        if isinstance(result, Fault):
            assert result.kind in FAULTS
            assert result.line == number
        else:
            # JSON may write a text in several ways; what was read is what it says.
            assert json.loads(line)["text"] == result.text != ""


@given(damage=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_never_ends_in_anything_but_rows_and_faults(
    folder: Path, damage: int, byte: int
):
    content = bytearray(zstandard.compress(b"\n".join(row(f"{i} {i * i}") for i in range(50))))
    content[damage % len(content)] = byte
    path = folder / "file.jsonl.zst"
    path.write_bytes(content)
    assert all(isinstance(result, Document | Fault) for result in read_rows(path))
