"""The OCDBT index gives the values that the database itself reads."""

from pathlib import Path

import pytest
import tensorstore as ts

from prts_jax.growth.on_disk.ocdbt_index import Extent, read_index

VALUES = {f"layers.mlp.up/c/{layer}/0": bytes([layer]) * (20 + layer) for layer in range(40)}


def open_database(directory, context, **config):
    base = {"driver": "file", "path": f"{directory}/"}
    spec = {"driver": "ocdbt", "base": base, "config": config}
    return ts.KvStore.open(spec, context=context).result()


def write(directory, **config):
    context = ts.Context()
    database = open_database(directory, context, **config)
    with ts.Transaction() as transaction:
        for key, value in VALUES.items():
            database.with_transaction(transaction).write(key, value).result()
    return database, context


def values_at(directory, index):
    def value_of(where):
        if not isinstance(where, Extent):
            return where
        data = (Path(directory) / where.file).read_bytes()
        return data[where.offset : where.offset + where.length]

    return {key: value_of(where) for key, where in index.items()}


@pytest.mark.parametrize(
    ("node_bytes", "inline_bytes"), [(200, 0), (200, 30), (10**6, 0), (10**6, 100)]
)
def test_every_value_lies_where_it_is_said_to(tmp_path, node_bytes, inline_bytes):
    write(tmp_path, max_decoded_node_bytes=node_bytes, max_inline_value_bytes=inline_bytes)
    actual = read_index(str(tmp_path))
    assert values_at(tmp_path, actual.values) == VALUES
    inline = sum(isinstance(spot, bytes) for spot in actual.values.values())
    assert inline == sum(len(value) <= inline_bytes for value in VALUES.values())
    assert actual.config["max_inline_value_bytes"] == inline_bytes


def test_values_of_a_database_that_another_one_took_over_are_found_in_its_folder(tmp_path):
    part = tmp_path / "part 0%:x"
    settings = {"max_decoded_node_bytes": 200, "max_inline_value_bytes": 0}
    database, context = write(part, **settings)
    whole = open_database(tmp_path, context, **settings)
    with ts.Transaction(atomic=True) as transaction:
        database.experimental_copy_range_to(whole.with_transaction(transaction)).result()
    actual = read_index(str(tmp_path))
    assert values_at(tmp_path, actual.values) == VALUES
    assert all(spot.file.startswith("part 0%:x/") for spot in actual.values.values())


def test_nodes_are_the_only_other_files_that_reading_needs(tmp_path):
    settings = {"max_decoded_node_bytes": 200, "max_inline_value_bytes": 0}
    for _ in range(20):  # older versions' files stay behind
        write(tmp_path, **settings)
    actual = read_index(str(tmp_path))
    needed = actual.nodes | {spot.file for spot in actual.values.values()}
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("d/*")}
    assert needed < files
    for file in files - needed:
        (tmp_path / file).unlink()
    database = open_database(tmp_path, ts.Context(), **settings)
    assert {key: database[key] for key in VALUES} == VALUES


def test_an_empty_database_holds_nothing(tmp_path):
    database = open_database(tmp_path, ts.Context())
    database["key"] = b"value"
    del database["key"]
    assert read_index(str(tmp_path)).values == {}


def test_what_is_no_database_is_an_error(tmp_path):
    with pytest.raises(Exception, match="Manifest not found"):
        read_index(str(tmp_path))
