"""Checks of every field of a store's index, so that no damaged value is taken for a right one."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LAYOUTS = ("mixed", "by_set")
INDEX_DIGEST = "index_sha256"

Problems = Iterator[str]
Check = Callable[[str, Any], Problems]


def parse(content: bytes) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
      ValueError: bad JSON, a number that is not finite, too deep nesting, or no object.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"the number {constant}")

    try:
        value = json.loads(content, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    return value


def index_digest(index: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all fields of an index but this digest itself."""
    fields = {name: value for name, value in index.items() if name != INDEX_DIGEST}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def type_problems(index: Mapping[str, Any]) -> Problems:
    """Yields a sentence for each field that is missing, or has a wrong type or range.

    Stores of older versions lack the digest of the index; there an unknown field is a problem too,
    because it is a damaged name.
    """
    return _fields(index, _INDEX, "", strict=INDEX_DIGEST not in index)


def value_problems(index: Mapping[str, Any]) -> Problems:
    """Yields a sentence for each value that contradicts another, of an index of right types."""
    yield from _sums(index)
    if index_digest(index) != index.get(INDEX_DIGEST, index_digest(index)):
        yield f"does not match its {INDEX_DIGEST}"


def _fields(
    values: Any, checks: Mapping[str, tuple[Check, bool]], where: str, strict: bool
) -> Problems:
    if not isinstance(values, dict):
        yield f"{where.rstrip('.')} is {_shown(values)}, not an object"
        return
    for name, (check, required) in checks.items():
        if name in values:
            yield from check(f"{where}{name}", values[name])
        elif required:
            yield f"{where}{name} is missing"
    for name in values:
        if strict and name not in checks:
            yield f"{where}{_shown(name)} is an unknown field"


def _shown(value: Any) -> str:
    return f"{value!r:.60}"


def _count(name: str, value: Any, least: int = 0) -> Problems:
    if type(value) is not int or not least <= value < 1 << 63:
        yield f"{name} is {_shown(value)}, not a whole number of at least {least}"


def _positive(name: str, value: Any) -> Problems:
    return _count(name, value, 1)


def _text(name: str, value: Any) -> Problems:
    if not isinstance(value, str):
        yield f"{name} is {_shown(value)}, not a text"


def _digest(name: str, value: Any) -> Problems:
    if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        yield f"{name} is {_shown(value)}, not a SHA-256"


def _shard_name(name: str, value: Any) -> Problems:
    if not (isinstance(value, str) and re.fullmatch(r"shard-\d{5,}", value)):
        yield f"{name} is {_shown(value)}, not the name of a shard"


def _layout(name: str, value: Any) -> Problems:
    if value not in LAYOUTS:
        yield f"{name} is {_shown(value)}, not one of {', '.join(LAYOUTS)}"


def _list(check: Check) -> Check:
    def check_list(name: str, value: Any) -> Problems:
        if not isinstance(value, list):
            yield f"{name} is {_shown(value)}, not a list"
            return
        for index, inner in enumerate(value):
            yield from check(f"{name}[{index}]", inner)

    return check_list


def _mapping(check: Check) -> Check:
    def check_mapping(name: str, value: Any) -> Problems:
        if not isinstance(value, dict):
            yield f"{name} is {_shown(value)}, not an object"
            return
        for key, inner in value.items():
            yield from check(f"{name}.{key}", inner)

    return check_mapping


def _section(checks: Mapping[str, tuple[Check, bool]]) -> Check:
    return lambda name, value: _fields(value, checks, f"{name}.", strict=False)


_SHARD: dict[str, tuple[Check, bool]] = {
    "name": (_shard_name, True),
    "source_file": (_text, True),
    "source_bytes": (_count, True),
    "tokens": (_count, True),
    "documents": (_count, True),
    "tokens_per_source": (_list(_count), True),
    "sha256": (
        _section(
            {
                name: (_digest, name not in ("answers", "rows"))
                for name in ("tokens", "ends", "sources", "answers", "rows")
            }
        ),
        True,
    ),
    "documents_per_source": (_list(_count), False),
    "bytes_per_source": (_list(_count), False),
    "rows": (_count, False),
    "bad": (_mapping(_list(_count)), False),
    "truncated": (_count, False),
    "lost_bytes": (_count, False),
    "source_sha256": (_text, False),
}

_INDEX: dict[str, tuple[Check, bool]] = {
    "format": (_positive, True),
    "task": (_text, True),
    "split": (_text, True),
    "tokenizer_sha256": (_text, True),
    "inputs": (_list(_text), True),
    "layout": (_layout, False),
    "packing": (_section({"length": (_positive, True)}), False),
    "vocab_size": (_positive, True),
    "eos_id": (_count, True),
    "sources": (_list(_text), True),
    "tokens": (_count, True),
    "documents": (_count, True),
    "rows": (_count, False),
    "bad": (_mapping(_count), False),
    "truncated": (_count, False),
    "shards": (_list(_section(_SHARD)), True),
    "checksums": (_section({"block": (_positive, True), "sha256": (_digest, True)}), False),
    "extends": (_digest, False),
    INDEX_DIGEST: (_digest, False),
    "fingerprint": (_digest, True),
}


def _sums(index: Mapping[str, Any]) -> Problems:
    """Compares the values with one another."""
    if index["eos_id"] >= index["vocab_size"]:
        yield f"has eos_id {index['eos_id']}, which is not below vocab_size {index['vocab_size']}"
    sets = len(index["sources"])
    if not 1 <= sets <= 256 or len(set(index["sources"])) != sets:
        yield f"has {sets} sources, not 1 to 256 with different names"
    shards = index["shards"]
    if len({shard["name"] for shard in shards}) != len(shards):
        yield "has two shards of one name"
    for shard in shards:
        yield from _shard_sums(shard, sets)
    for key in ("tokens", "documents", "rows", "truncated"):
        total = sum(shard.get(key, 0) for shard in shards)
        if index.get(key, total) != total:
            yield f"counts {index[key]} {key}, its shards {total}"
    bad: dict[str, int] = {}
    for shard in shards:
        for kind, lines in shard.get("bad", {}).items():
            bad[kind] = bad.get(kind, 0) + len(lines)
    if index.get("bad", bad) != bad:
        yield f"counts bad rows as {_shown(index['bad'])}, its shards as {_shown(bad)}"


def _shard_sums(shard: Mapping[str, Any], sets: int) -> Problems:
    name = shard["name"]
    for key in ("tokens", "documents", "bytes"):
        counts: Any = shard.get(f"{key}_per_source")
        if not counts and key != "tokens":
            continue  # not recorded
        if len(counts) != sets:
            yield f"has {len(counts)} {key}_per_source of {name} for {sets} sets"
        elif key != "bytes" and sum(counts) != shard[key]:
            yield f"counts {shard[key]} {key} of {name}, its sets {sum(counts)}"
