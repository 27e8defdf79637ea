"""Parameters of Linen modules that say what they are: `architecture.declare` reads it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta

from prts_jax.declaration import Kind


class Declared(struct.PyTreeNode, meta.AxisMetadata[Any]):
    """A parameter boxed with what it says of itself; `nn.scan` adds the layers axis to it."""

    value: Any
    axes: tuple[str, ...] = struct.field(pytree_node=False)
    contracts: tuple[str, ...] = struct.field(pytree_node=False)
    init: str = struct.field(pytree_node=False)
    kind: Kind = struct.field(pytree_node=False)
    normalizes: str = struct.field(pytree_node=False)
    normed: bool = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """Returns the bare value."""
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        """Returns the same declaration around another value."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        """Inserts the axis that a lifted transformation adds."""
        axes = list(self.axes)
        axes.insert(index, params[meta.PARTITION_NAME])
        return self.replace(axes=tuple(axes))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        """Takes the axis of a lifted transformation away again."""
        del params
        return self.replace(axes=self.axes[:index] + self.axes[index + 1 :])


def declare_param(
    module: nn.Module,
    name: str,
    kind: Kind,
    axes: dict[str, int],
    contracts: tuple[str, ...] = (),
    init: str = "linear",
    normalizes: str = "",
    normed: bool = False,
) -> jax.Array:
    """Declares a float32 parameter of a Linen module and returns its value.

    The value Linen makes is never used (see `prts_jax.model.initialise`): it carries the
    declaration through `jax.eval_shape`.

    Args:
      module: the module being called.
      name: last part of the parameter's path.
      kind: what the parameter does.
      axes: logical axis → size, in the order of the array's dimensions.
      contracts: axes summed over when the parameter is applied.
      init: name of the initialiser.
      normalizes: see `Declaration`.
      normed: see `Declaration`.
    """

    def boxed(rng: jax.Array) -> Any:
        del rng
        value = jnp.zeros(tuple(axes.values()), jnp.float32)
        return Declared(value, tuple(axes), contracts, init, kind, normalizes, normed)

    value: jax.Array = module.param(name, boxed)  # Linen unboxes it
    return value


def declare_norm(module: nn.Module, name: str, axes: dict[str, int]) -> jax.Array:
    """Declares the scale of an RMS norm over its one axis; see `declare_param`."""
    (axis,) = axes
    return declare_param(module, name, Kind.NORM, axes, init="ones", normalizes=axis)
