import itertools
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sources import list_files, parse_document, read_documents, read_lines
from prts_jax.errors import UserError


def row(text: str, set_name: str = "RedPajamaC4") -> bytes:
    return json.dumps({"text": text, "meta": {"redpajama_set_name": set_name}}).encode()


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path):
    for chunk, number in ((10, 0), (2, 11), (2, 9), (1, 3)):
        file = tmp_path / "train" / f"chunk{chunk}" / f"example_train_{number}.jsonl.zst"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "train" / "chunk1" / "notes.txt").touch()
    names = [
        str(Path(file).relative_to(tmp_path / "train")) for file in list_files(tmp_path, "train")
    ]
    assert names == [
        "chunk1/example_train_3.jsonl.zst",
        "chunk2/example_train_9.jsonl.zst",
        "chunk2/example_train_11.jsonl.zst",
        "chunk10/example_train_0.jsonl.zst",
    ]


def test_a_folder_without_text_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no text found"):
        list_files(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'dev'"):
        list_files(tmp_path, "dev")


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    frames=st.integers(1, 4),
    end=st.sampled_from([b"", b"\n", b"\n\n"]),
)
def test_every_document_is_read_whatever_its_characters_and_the_frames(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], frames: int, end: bytes
):
    content = b"\n".join(map(row, texts)) + end
    cuts = [len(content) * i // frames for i in range(frames + 1)]
    path = tmp_path_factory.mktemp("zst") / "file.jsonl.zst"
    path.write_bytes(
        b"".join(zstandard.compress(content[a:b]) for a, b in itertools.pairwise(cuts))
    )
    assert [document.text for document in read_documents(path)] == texts


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_an_error_wherever_it_ends(
    tmp_path_factory: pytest.TempPathFactory, share: float
):
    whole = zstandard.compress(b"\n".join(row(f"{i} {i * i}") for i in range(1000)))
    cut = max(1, int(len(whole) * share))
    path = tmp_path_factory.mktemp("zst") / "file.jsonl.zst"
    path.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"truncated file: .*file\.jsonl\.zst"):
        list(read_lines(path))


def test_a_corrupt_file_is_an_error(tmp_path: Path):
    path = tmp_path / "file.jsonl.zst"
    path.write_bytes(b"this is not zstandard at all")
    with pytest.raises(UserError, match="corrupt file"):
        list(read_lines(path))
    with pytest.raises(UserError, match="cannot read"):
        list(read_lines(tmp_path / "none.zst"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json", "bad row"),
        (b'"text"', "bad row"),
        (b"\xff\xfe{}", "bad row"),
        (b'{"meta": {"redpajama_set_name": "a"}}', "no field 'text'"),
        (b'{"text": "a", "meta": {}}', "no field 'redpajama_set_name'"),
        (b'{"text": 3, "meta": {"redpajama_set_name": "a"}}', "must be strings"),
        (b'{"text": "\\ud800", "meta": {"redpajama_set_name": "a"}}', "surrogates"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: bytes, reason: str):
    path = tmp_path / "file.jsonl.zst"
    path.write_bytes(zstandard.compress(b"\n".join([row("good"), b"", line])))
    documents = read_documents(path)
    assert next(documents).text == "good"
    with pytest.raises(UserError, match=rf"{reason}.*|.*{reason}") as caught:
        next(documents)
    assert "file.jsonl.zst, line 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_row_keeps_its_text_exactly():
    text = " two\u2028lines\r\n\tand\x00 more "
    document = parse_document(row(text, "RedPajamaBook"), "here")
    assert (document.text, document.set_name) == (text, "RedPajamaBook")
