"""Nested dictionaries and their paths."""

from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from prts_jax import tree

names = st.text("abcxyz_0", min_size=1, max_size=4)
trees: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(names, st.integers(), max_size=3),
    lambda children: st.dictionaries(names, st.integers() | children, max_size=3),
    max_leaves=12,
)


class Pair(NamedTuple):
    """A node such as optax has them."""

    mu: Any
    count: int


def test_named_leaves_join_fields_keys_and_indices():
    named = tree.named_leaves((None, Pair({"layers": {"up": 1.0}}, 2)))
    assert list(named.items()) == [("1/mu/layers/up", 1.0), ("1/count", 2)]


def without_empty(node: dict[str, Any]) -> dict[str, Any]:
    """A dictionary without leaves has no path, so it is not kept."""
    kept = {
        name: without_empty(child) if isinstance(child, dict) else child
        for name, child in node.items()
    }
    return {name: child for name, child in kept.items() if child != {}}


@given(trees)
def test_unflatten_undoes_flatten(nested: dict[str, Any]) -> None:
    assert tree.unflatten(tree.flatten(nested)) == without_empty(nested)


@given(trees)
def test_a_path_leads_to_its_leaf(nested: dict[str, Any]) -> None:
    for path, leaf in tree.flatten(nested).items():
        node: Any = nested
        for name in path.split("/"):
            node = node[name]
        assert node == leaf


def test_order_does_not_depend_on_insertion() -> None:
    first = {"b": {"d": 1, "c": 2}, "a": 3}
    second = {"a": 3, "b": {"c": 2, "d": 1}}
    assert list(tree.flatten(first)) == list(tree.flatten(second)) == ["a", "b/c", "b/d"]


def test_lists_are_leaves() -> None:
    assert tree.flatten({"a": [1, 2]}) == {"a": [1, 2]}
