"""Rows of a `.json` file that is one array, compared with `json.loads` of the whole file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.text import arrays, lines
from data_pipelines.text.lines import Damage
from data_pipelines.text.rows import Document, Fault, Fields, read_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def elements(content: bytes, cut: int, most: int = 1 << 20) -> list[Any]:
    parts = [content[at : at + cut] for at in range(0, len(content), cut)]
    return [row for _, row in arrays._elements(iter(parts), most)]


@given(st.lists(VALUES), st.booleans(), st.sampled_from([None, 2]), st.integers(1, 30))
def test_any_array_in_any_pieces_gives_its_elements(
    values: list[Any], ascii_only: bool, indent: int | None, cut: int
):
    content = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "KEPT_CHARACTERS", 1)
        read = elements(content, cut)
    assert [json.loads(row) for row in read] == json.loads(content)


@pytest.mark.parametrize(
    ("content", "good", "kind"),
    [
        (b'[{"a": 1}, {"a": 2}', 2, "truncated_file"),
        (b'[{"a": 1}, {"a": ', 1, "truncated_file"),
        (b'[{"a": 1} {"a": 2}, {"a": 3}, {"a": 4}]', 1, "corrupt_file"),
        (b'[{"a": 1}, {"a" 2}, {"a": 3}, {"a": 4}]', 1, "corrupt_file"),
        (b'[{"a": 1}]\n[{"a": 2}]', 1, "corrupt_file"),
        (b'[{"a": 1}, {"a": "' + b"x" * 90 + b'"}, {"a": 3}]', 1, "enormous_line"),
        (b"[" * 100_000, 0, "corrupt_file"),
    ],
)
def test_damage_ends_an_array_and_the_rest_is_counted(content: bytes, good: int, kind: str):
    *rows, damage = elements(content, 40, 50)
    assert len(rows) == good
    assert isinstance(damage, Damage)
    assert damage.kind == kind
    assert 0 <= damage.lost_bytes <= len(content)


def test_files_named_json_hold_an_array_or_lines(tmp_path: Path):
    rows = [{"text": "one"}, {"text": 2}, {"text": "thr\u00e9e\nlines"}]
    array = json.dumps(rows, indent=1, ensure_ascii=False).encode()
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    expected = [
        Document("one", None, 1),
        Fault("text_not_a_string", 2, "int"),
        Document("thr\u00e9e\nlines", None, 3),
    ]
    spoilt = array.replace("\u00e9".encode(), b"\xe9")
    for name, content in (
        ("a.json", array),
        ("b.JSON", b"\xef\xbb\xbf \n" + array + b"\n"),
        ("c.json.gz", gzip.compress(array)),
        ("d.json", jsonl),
    ):
        (tmp_path / name).write_bytes(content)
        assert list(read_rows(tmp_path / name, fields=Fields("text", None))) == expected
    (tmp_path / "e.json").write_bytes(spoilt)
    *_, last = read_rows(tmp_path / "e.json", fields=Fields("text", None))
    assert isinstance(last, Fault)
    assert (last.kind, last.line) == ("invalid_utf8", 3)
    (tmp_path / "f.json").write_bytes(b"")
    assert [row for _, row in arrays.numbered_rows(tmp_path / "f.json", 9)] == [
        lines.Damage("truncated_file")
    ]
