"""Rows of parquet files as documents and faults (`rows.py`), read a few at a time."""

import os
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from data_pipelines.text.inputs import open_input, unreadable
from data_pipelines.text.rows import (
    MAX_LINE_BYTES,
    SLIMPAJAMA_FIELDS,
    Document,
    Fault,
    Fields,
    document_of,
    known_set,
)

BATCH_ROWS = 256  # a row group may hold gigabytes of text


def read_parquet(
    path: str,
    sets: Collection[str] | None = None,
    max_text_bytes: int = MAX_LINE_BYTES,
    fields: Fields = SLIMPAJAMA_FIELDS,
) -> Iterator[Document | Fault]:
    """Yields a file's documents and faults, one for each row, in order.

    A row group is decoded twice: damage anywhere in it is one fault, at its first row, and none of
    its rows are taken; reading continues with the next row group. Altered bytes are noticed where
    the pages have checksums, which are optional. A fault's line is the row's number, from 1; texts
    of more than `max_text_bytes` are faults. With `sets` None, any set is known.

    Raises:
      UserError: the file cannot be opened or read from the disk.
    """
    try:
        with open_input(path) as file:
            for number, row in _numbered_rows(file, fields):
                document = row if isinstance(row, Fault) else document_of(row, number, fields)
                if isinstance(document, Document) and len(document.text.encode()) > max_text_bytes:
                    document = Fault("enormous_line", number)
                yield known_set(document, number, sets)
    except OSError as error:
        raise unreadable(path, error) from error


def _numbered_rows(file: BinaryIO, fields: Fields) -> Iterator[tuple[int, dict[str, Any] | Fault]]:
    columns = [name for name in (fields.text, fields.set) if name is not None]
    number, length = 1, file.seek(0, os.SEEK_END)
    try:
        table = parquet.ParquetFile(file, page_checksum_verification=True)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        if min(sizes, default=0) < 0 or sum(sizes) != table.metadata.num_rows:
            raise ValueError("the numbers of rows contradict one another")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        yield number, _damage(error, number, length)
        return
    for group, size in enumerate(sizes):
        # The first pass finds damage before any of the group's rows are taken.
        try:
            batches = table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
            if sum(batch.num_rows for batch in batches) != size:
                raise ValueError("the row group ends early")
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            # Sizes in damaged metadata may lie, and pyarrow may crash on them.
            yield number, _damage(error, number, length * size // sum(sizes))
        else:
            first = number
            for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                for row in _as_text(batch, first):
                    yield first, row
                    first += 1
        number += size


def _as_text(batch: pyarrow.RecordBatch, number: int) -> Iterator[dict[str, Any] | Fault]:
    """Yields the rows of a batch; checks UTF-8, because Arrow does not."""
    for index in range(batch.num_rows):
        try:
            [row] = batch.slice(index, 1).to_pylist()
            yield {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in row.items()
            }
        except UnicodeDecodeError as error:
            yield Fault("invalid_utf8", number + index, error.reason)


def _damage(error: Exception, number: int, lost_bytes: int) -> Fault:
    """Returns the fault for an error of Arrow; raises an error of the disk."""
    if isinstance(error, OSError) and not (type(error) is OSError and error.errno is None):
        raise error
    return Fault("corrupt_file", number, str(error), lost_bytes)
