"""Rows of parquet, good and bad; the damaged ones are made by hand."""

import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data_pipelines.text.parquet import BATCH_ROWS, read_parquet
from data_pipelines.text.rows import FAULTS, Document, Fault, Fields
from prts_jax.errors import UserError

TEXT_ALONE = Fields("text", None)


def written(path: Path, table: Any, row_group_size: int = 100) -> str:
    parquet.write_table(table, path, row_group_size=row_group_size, compression="none")
    return str(path)


def test_every_row_of_every_row_group_is_read_in_order(tmp_path: Path):
    texts = [f"text {number} ✓" for number in range(3 * BATCH_ROWS + 5)]
    path = written(tmp_path / "a.parquet", pyarrow.table({"text": texts}), BATCH_ROWS + 9)
    assert [row.text for row in read_parquet(path, fields=TEXT_ALONE)] == texts


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.binary(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
)
def test_text_of_every_arrow_type_is_read(tmp_path: Path, kind: Any):
    column = pyarrow.array(["one", "two", "one"], pyarrow.string()).cast(kind)
    path = written(tmp_path / "a.parquet", pyarrow.table({"text": column}))
    assert [row.text for row in read_parquet(path, fields=TEXT_ALONE)] == ["one", "two", "one"]


def test_a_bad_row_has_its_kind_and_number_and_good_ones_around_it(tmp_path: Path):
    text = [b"good", None, b"", b"caf\xe9", b"\xed\xa0\x80", b"x" * 50, b"good", b"good", b"good"]
    meta = [{"lang": "en"}] * 6 + [None, {"lang": None}, {"lang": "xx"}]
    for as_text in (True, False):
        column = pyarrow.array(text, pyarrow.binary())
        column = column.view(pyarrow.string()) if as_text else column
        table = pyarrow.table({"text": column, "meta": meta})
        path = written(tmp_path / "a.parquet", table, row_group_size=4)
        good, *faults = read_parquet(path, {"en"}, 40, Fields("text", "meta.lang"))
        assert good == Document("good", "en", 1)
        assert [(fault.kind, fault.line) for fault in faults if isinstance(fault, Fault)] == [
            ("text_not_a_string", 2),
            ("empty_text", 3),
            ("invalid_utf8", 4),
            ("invalid_utf8", 5),  # a surrogate, which UTF-8 has not
            ("enormous_line", 6),
            ("missing_set", 7),
            ("unknown_set", 8),
            ("unknown_set", 9),
        ]


def test_a_column_that_is_missing_or_not_text_is_a_fault(tmp_path: Path):
    path = written(tmp_path / "a.parquet", pyarrow.table({"n": [1, 2], "s": ["a", "b"]}))
    actual = {
        field: [row.kind for row in read_parquet(path, fields=Fields(field, None))]
        for field in ("text", "n")
    }
    assert actual == {"text": ["missing_text"] * 2, "n": ["text_not_a_string"] * 2}


def test_damage_to_a_row_group_leaves_the_others(tmp_path: Path):
    table = pyarrow.table({"text": [f"text {n}" for n in range(9)]})
    path = tmp_path / "a.parquet"
    written(path, table, row_group_size=3)
    second = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    begin = second.dictionary_page_offset
    content[begin : begin + second.total_compressed_size] = b"\xff" * second.total_compressed_size
    path.write_bytes(content)
    rows = list(read_parquet(str(path), fields=TEXT_ALONE))
    assert [row.text if isinstance(row, Document) else (row.kind, row.line) for row in rows] == [
        *("text 0", "text 1", "text 2"),
        ("corrupt_file", 4),
        *("text 6", "text 7", "text 8"),
    ]


def test_a_row_group_with_fewer_rows_than_it_counts_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Short(parquet.ParquetFile):
        def iter_batches(self, *args: Any, **options: Any) -> Any:
            for batch in super().iter_batches(*args, **options):
                yield batch.slice(0, batch.num_rows - 1)

    path = written(tmp_path / "a.parquet", pyarrow.table({"text": ["a", "b", "c", "d"]}), 2)
    monkeypatch.setattr(parquet, "ParquetFile", Short)
    rows = read_parquet(path, fields=TEXT_ALONE)
    assert [row[:3] for row in rows] == [
        ("corrupt_file", line, "the row group ends early") for line in (1, 3)
    ]


def test_no_flipped_bit_of_pages_with_checksums_leaves_an_altered_row(tmp_path: Path):
    generator = random.Random(0)
    texts = [generator.randbytes(60).hex() for _ in range(90)]
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": texts}),
        path,
        row_group_size=30,
        data_page_size=500,
        write_page_checksum=True,
        use_dictionary=False,
    )
    whole = path.read_bytes()
    groups = [texts[begin : begin + 30] for begin in (0, 30, 60)]
    for _ in range(200):
        bit = generator.randrange(8 * len(whole))
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        rows = list(read_parquet(str(path), fields=TEXT_ALONE))
        taken = [row.text for row in rows if isinstance(row, Document)]
        lost = [row for row in rows if isinstance(row, Fault)]
        assert set(taken) <= set(texts)
        for fault in lost:
            assert fault.kind == "corrupt_file"
            assert fault.lost_bytes > 0
        expected = [text for group in groups if group[0] in taken for text in group]
        assert taken == expected, "a row group is taken whole or not at all"
        assert lost or taken == texts


def test_a_truncated_parquet_file_is_one_fault(tmp_path: Path):
    path = tmp_path / "a.parquet"
    written(path, pyarrow.table({"text": ["a", "b"]}))
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"no parquet at all"):
        path.write_bytes(content)
        [fault] = read_parquet(str(path), fields=TEXT_ALONE)
        assert (fault.kind, fault.line) == ("corrupt_file", 1)
    with pytest.raises(UserError, match="cannot read .*none.parquet: No such file"):
        list(read_parquet(str(tmp_path / "none.parquet")))
    with pytest.raises(UserError, match="cannot read .*: Is a directory"):
        list(read_parquet(str(tmp_path)))


@given(where=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_changed_byte_never_ends_in_anything_but_rows_and_faults(
    tmp_path_factory: pytest.TempPathFactory, where: int, byte: int
):
    path = tmp_path_factory.getbasetemp() / "fuzzed.parquet"
    written(path, pyarrow.table({"text": ["one", "two", "three"], "set": ["a", "b", "a"]}), 2)
    content = bytearray(path.read_bytes())
    content[where % len(content)] = byte
    path.write_bytes(content)
    for row in read_parquet(str(path), {"a", "b"}, fields=Fields("text", "set")):
        assert isinstance(row, Document) or row.kind in FAULTS
