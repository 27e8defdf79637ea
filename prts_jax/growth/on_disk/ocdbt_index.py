"""The index of an OCDBT database: for each key, the bytes of the file that hold its value.

tensorstore's OCDBT database is a tree of nodes in data files that never change once written. A leaf
of the tree holds small values itself, and of larger ones the file, the offset and the length.
`tensorstore.ocdbt.dump` shows nodes as they are; this file walks them.
"""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import tensorstore as ts


@dataclass(frozen=True)
class Extent:
    """Bytes of a data file: `file` relative to the database's directory, and which of its bytes."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Index:
    """The keys of a database, and where their values lie.

    Attributes:
      values: key → where its value lies, or the value itself where the tree holds it.
      nodes: the files with the nodes of the tree.
      config: settings of the database, such as which values its tree holds itself.
    """

    values: dict[str, Extent | bytes] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)


def read_index(directory: str) -> Index:
    """Reads the index of a local database, without reading values.

    Args:
      directory: of the database.

    Raises:
      Exception: whatever tensorstore raises for files that are missing or damaged; KeyError and
        ValueError for a format that this version does not know.
    """
    base = ts.KvStore.open({"driver": "file", "path": f"{directory}/"}).result()
    manifest = ts.ocdbt.dump(base).result()
    root = manifest["versions"][-1]["root"]
    own = {key: value for key, value in manifest["config"].items() if key != "uuid"}
    index = Index(config=own)
    if "location" in root:
        _walk(base, root["location"], "", index)
    return index


def _walk(base: Any, node: str, prefix: str, index: Index) -> None:
    index.nodes.add(_extent(node, "btreenode").file)
    for entry in ts.ocdbt.dump(base, node).result()["entries"]:
        if "location" in entry:  # keys below are relative to what they all begin with
            below = prefix + _bytes(entry["subtree_common_prefix"]).decode()
            _walk(base, entry["location"], below, index)
            continue
        key = prefix + _bytes(entry["key"]).decode()
        if "inline_value" in entry:
            index.values[key] = _bytes(entry["inline_value"])
        else:
            index.values[key] = _extent(entry["indirect_value"], "value")


def _extent(location: str, kind: str) -> Extent:
    """Parses "kind:folder:file:offset:length"; folder and file are percent-encoded."""
    named, folder, file, offset, length = location.split(":")
    if named != kind:
        raise ValueError(f"{location!r} is not the location of a {kind}")
    return Extent(unquote(folder) + unquote(file), int(offset), int(length))


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
