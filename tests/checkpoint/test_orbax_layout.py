"""Facts of Orbax's layout on disk that sharing files and streaming rely on: one test a fact.

A failure here after an upgrade names the change; `arrays`, `ocdbt_index`, `reference` rely on it.
`prts grow` streams where sharing no longer works, so nothing else would tell.
"""

import json
from pathlib import Path

import pytest
import tensorstore as ts

from tests.checkpoint.tiny import DECLARED, write_source


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """The folder of a checkpoint's parameters as Orbax writes it."""
    path = tmp_path_factory.mktemp("layout") / "source"
    write_source(path)
    return path / "params"


def base(params: Path):
    return ts.KvStore.open({"driver": "file", "path": f"{params}/"}).result()


def database(params: Path):
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{params}/"}}
    return ts.KvStore.open(spec).result()


def entries(params: Path):
    root = ts.ocdbt.dump(base(params)).result()["versions"][-1]["root"]["location"]
    return ts.ocdbt.dump(base(params), root).result()["entries"]


def test_all_arrays_are_in_one_ocdbt_database(params):
    assert (params / "manifest.ocdbt").is_file()
    files = {str(file.relative_to(params)) for file in params.rglob("d/*")}
    assert files
    assert all(file.startswith(("d/", "ocdbt.process_0/d/")) for file in files)


def test_a_leaf_is_a_zarr_array_named_with_dots(params):
    names = {key.decode().partition("/")[0] for key in database(params).list().result()}
    assert names == {path.replace("/", ".") for path in DECLARED}


def test_each_layer_has_a_key_of_its_own(params):
    keys = {key.decode() for key in database(params).list().result()}
    leaf = {key for key in keys if key.startswith("layers.mlp.up/")}
    chunks = ["c/0/0/0", "c/1/0/0", "c/2/0/0"]
    assert leaf == {f"layers.mlp.up/{rest}" for rest in ("zarr.json", *chunks)}


def test_the_description_of_an_array_has_the_fields_that_are_known(params):
    array = json.loads(database(params)["layers.mlp.up/zarr.json"])
    assert sorted(array) == [
        "chunk_grid",
        "chunk_key_encoding",
        "codecs",
        "data_type",
        "fill_value",
        "node_type",
        "shape",
        "zarr_format",
    ]
    assert array["shape"] == [3, 16, 24]
    assert array["chunk_grid"]["configuration"] == {"chunk_shape": [1, 16, 24]}
    assert array["chunk_key_encoding"] == {"name": "default"}


def test_values_are_stored_as_they_are(params):
    array = json.loads(database(params)["layers.mlp.up/zarr.json"])
    outer, inner = array["codecs"], array["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in outer] == ["sharding_indexed"]
    assert inner == [{"name": "bytes", "configuration": {"endian": "little"}}]


def test_the_manifest_ends_with_the_newest_version_and_its_root(params):
    manifest = ts.ocdbt.dump(base(params)).result()
    assert {"config", "versions"} <= manifest.keys()
    assert manifest["versions"][-1]["root"]["location"].startswith("btreenode:")
    assert {"uuid", "max_inline_value_bytes"} <= manifest["config"].keys()


def test_a_key_has_a_small_value_or_the_place_of_a_large_one(params):
    for entry in entries(params):
        assert entry.keys() in ({"key", "inline_value"}, {"key", "indirect_value"})
    places = [entry["indirect_value"] for entry in entries(params) if "indirect_value" in entry]
    assert places
    for spot in places:
        kind, folder, file, offset, length = spot.split(":")
        assert kind == "value"
        assert (params / (folder + file)).stat().st_size >= int(offset) + int(length)


def test_pointers_are_copied_between_databases_over_the_same_files(params, tmp_path):
    context = ts.Context()
    files = {"driver": "file", "path": f"{params}/"}
    other = {"driver": "file", "path": f"{tmp_path}/"}
    old = ts.KvStore.open({"driver": "ocdbt", "base": files}, context=context).result()
    spec = {"driver": "ocdbt", "base": files, "manifest": other}
    new = ts.KvStore.open(spec, context=context).result()
    with ts.Transaction(atomic=True) as transaction:
        old.experimental_copy_range_to(new.with_transaction(transaction)).result()
    assert (tmp_path / "manifest.ocdbt").is_file()
    assert new["layers.mlp.up/c/0/0/0"] == old["layers.mlp.up/c/0/0/0"]


def test_the_tree_is_described_beside_the_arrays(params):
    described = json.loads((params / "_METADATA").read_text())
    assert described["use_ocdbt"] is True
    assert described["use_zarr3"] is True
    assert described["store_array_data_equal_to_fill_value"] is True
    leaf = described["tree_metadata"]["('layers', 'mlp', 'up')"]
    assert leaf == {
        "key_metadata": [{"key": key, "key_type": 2} for key in ("layers", "mlp", "up")],
        "value_metadata": {
            "value_type": "jax.Array",
            "skip_deserialize": False,
            "write_shape": [3, 16, 24],
        },
    }
