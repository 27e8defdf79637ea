"""Nested dictionaries of arrays ↔ flat dictionaries keyed by path ("layers/attention/q")."""

from collections.abc import Container, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a nested dictionary under their slash-joined paths, in sorted order.

    Anything that is not a mapping is a leaf.

    >>> flatten({"layers": {"mlp": {"up": 1}}, "head": 2})
    {'head': 2, 'layers/mlp/up': 1}
    """
    leaves: dict[str, Any] = {}
    for name in sorted(tree):
        path = f"{prefix}{name}"
        if isinstance(tree[name], Mapping):
            leaves.update(flatten(tree[name], f"{path}/"))
        else:
            leaves[path] = tree[name]
    return leaves


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dictionary whose `flatten` is `leaves`.

    >>> unflatten({"layers/mlp/up": 1, "head": 2})
    {'layers': {'mlp': {'up': 1}}, 'head': 2}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any tree by path: "1/mu/layers/mlp/up" for optax's Adam in a chain.

    The order is that of `jax.tree.leaves`.
    """
    import jax  # here, since reports flatten configs without importing jax

    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def parameter_of(path: str, parameters: Container[str]) -> str | None:
    """Returns the parameter that a leaf of an optimizer's state belongs to; None for a count.

    Optimizers keep moments in trees shaped as the parameters, whatever wraps them, so the path of a
    moment ends with the path of its parameter.

    Args:
      path: of the leaf, as `named_leaves` names it.
      parameters: paths of the parameters.

    >>> parameter_of("inner_states/decay/inner_state/0/mu/layers/mlp/up", {"layers/mlp/up"})
    'layers/mlp/up'
    """
    parts = path.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in parameters), None)
