"""The rules from logical axes of arrays to axes of the device mesh."""

from collections.abc import Mapping

from prts_jax.config.reading import nearest
from prts_jax.errors import UserError

Rule = str | tuple[str, ...] | None

MESH_AXES = ("data", "fsdp", "sequence", "tensor")
"""Axes of every mesh, those whose devices exchange most last."""

RULES: Mapping[str, Rule] = {
    # parameters
    "layers": None,
    "vocab": "tensor",
    "embed": ("fsdp", "sequence"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    # activations
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "residual_length": ("sequence", "tensor"),
    "keys": None,
    "features": None,
}
"""Which mesh axes split a logical axis, unless `config.mesh.rules` says otherwise.

`length` is of positions inside a layer and `residual_length` of those between layers, where
`tensor` would otherwise hold copies. `keys` is of the positions that queries attend to.
"""

FIXED = ("layers", "head_dim", "keys", "features")
"""Growth and checkpoints read layer by layer, and attention needs whole heads and all keys."""


def parse_rules(text: str) -> dict[str, Rule]:
    """Returns `RULES` with the changes of `config.mesh.rules`.

    Args:
      text: AXIS=MESH_AXES,… with mesh axes joined by "+" and none for copies, such as
        "embed=none,vocab=fsdp+tensor".

    Raises:
      UserError: an entry is not of this form, an axis is unknown or cannot be split, or query and
        key heads are split differently.

    >>> parse_rules("vocab=fsdp+tensor,embed=none")["vocab"]
    ('fsdp', 'tensor')
    """
    rules = dict(RULES)
    for entry in filter(None, (part.strip() for part in text.split(","))):
        axis, equals, value = (part.strip() for part in entry.partition("="))
        names = () if value == "none" else tuple(name.strip() for name in value.split("+"))
        if not equals or len(set(names)) < len(names):
            raise UserError(
                f"config.mesh.rules: {entry!r} is not AXIS=MESH_AXES; write for example "
                "vocab=fsdp+tensor, or embed=none"
            )
        if axis not in RULES:
            known = [name for name in RULES if name not in FIXED]
            raise UserError(f"config.mesh.rules: axis {axis!r} is unknown; {nearest(axis, known)}")
        if axis in FIXED:
            raise UserError(f"config.mesh.rules: {axis} cannot be split; remove {entry!r}")
        for name in names:
            if name not in MESH_AXES:
                raise UserError(
                    f"config.mesh.rules: {entry!r}: mesh axis {name!r} is none of "
                    f"{', '.join(MESH_AXES)}"
                )
        rules[axis] = names[0] if len(names) == 1 else names or None
    if rules["heads"] != rules["kv_heads"]:
        raise UserError(
            "config.mesh.rules: heads and kv_heads must be split alike; give both the same axes"
        )
    return rules
