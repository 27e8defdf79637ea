"""Where a checkpoint's values lie: the bytes of which file each key of its database points at.

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
class Extents:
    """What a database holds, and where.

    Attributes:
      values: key → where its value lies, or the value itself where the tree holds it.
      nodes: the files with the nodes of the tree.
      config: how the database was made: which values its tree holds itself, and more.
    """

    values: dict[str, Extent | bytes] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)


def extents(directory: str) -> Extents:
    """Reads where all values of a local OCDBT database lie, without reading them.

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
    found = Extents(config=own)
    if "location" in root:
        _walk(base, root["location"], "", found)
    return found


def _walk(base: Any, node: str, prefix: str, found: Extents) -> None:
    found.nodes.add(_extent(node, "btreenode").file)
    for entry in ts.ocdbt.dump(base, node).result()["entries"]:
        if "location" in entry:  # keys below are relative to what they all begin with
            below = prefix + _bytes(entry["subtree_common_prefix"]).decode()
            _walk(base, entry["location"], below, found)
            continue
        key = prefix + _bytes(entry["key"]).decode()
        if "inline_value" in entry:
            found.values[key] = _bytes(entry["inline_value"])
        else:
            found.values[key] = _extent(entry["indirect_value"], "value")


def _extent(location: str, kind: str) -> Extent:
    """Parses "kind:folder:file:offset:length"; folder and file are percent-encoded."""
    found, folder, file, offset, length = location.split(":")
    if found != kind:
        raise ValueError(f"{location!r} is not the place of a {kind}")
    return Extent(unquote(folder) + unquote(file), int(offset), int(length))


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
