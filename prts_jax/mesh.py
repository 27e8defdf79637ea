"""The device mesh of a config, and the mesh axes that split each logical axis of an array."""

import contextlib
import contextvars
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from prts_jax import tree
from prts_jax.config import MeshConfig
from prts_jax.config.rules import MESH_AXES, RULES, Rule, parse_rules
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.launch.accelerators import GENERATIONS

_rules: contextvars.ContextVar[Mapping[str, Rule]] = contextvars.ContextVar("rules", default=RULES)


@contextlib.contextmanager
def sharding_rules(rules: Mapping[str, Rule]) -> Iterator[None]:
    """Shards by these rules within the context; threads need a copy of it."""
    token = _rules.set(rules)
    try:
        yield
    finally:
        _rules.reset(token)


def rules_without(axes: Collection[str]) -> contextlib.AbstractContextManager[None]:
    """Shards within the context as before, but not by these mesh axes."""
    rules = {
        axis: tuple(name for name in mesh_axes(axis) if name not in axes) or None
        for axis in _rules.get()
    }
    return sharding_rules(rules)


@contextlib.contextmanager
def use_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Iterator[Mesh]:
    """Yields the mesh of a config, which holds with its rules within the context.

    Raises:
      UserError: see `make_mesh` and `parse_rules`.
    """
    mesh = make_mesh(config, devices)
    with jax.set_mesh(mesh), sharding_rules(parse_rules(config.rules)):
        yield mesh


def partition_spec(axes: Sequence[str]) -> PartitionSpec:
    """Returns the mesh axes that split a parameter or batch with these logical axes.

    Raises:
      UserError: `config.mesh.rules` splits two of them by one mesh axis.
    """
    used = [name for axis in axes for name in mesh_axes(axis)]
    if len(set(used)) < len(used):
        raise UserError(
            f"config.mesh.rules: a mesh axis splits two of the axes {', '.join(axes)}; give each "
            "of them another mesh axis, or none"
        )
    return _spec_of_activation(axes)


def _spec_of_activation(axes: Sequence[str]) -> PartitionSpec:
    """Returns the same; a mesh axis that splits two of the logical axes splits the first alone."""
    spec: list[Rule] = []
    taken: set[str] = set()
    for axis in axes:
        names = tuple(name for name in mesh_axes(axis) if name not in taken)
        taken |= set(names)
        spec.append(names[0] if len(names) == 1 else names or None)
    return PartitionSpec(*spec)


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Returns the mesh axes that split a logical axis."""
    rule = _rules.get()[axis]
    return (rule,) if isinstance(rule, str) else rule or ()


def mesh_sizes(config: MeshConfig) -> dict[str, int]:
    """Returns mesh axis → size as the config has it."""
    return {axis: getattr(config, axis) for axis in MESH_AXES}


def mesh_shape(config: MeshConfig, devices: int) -> dict[str, int]:
    """Returns mesh axis → size, with the axis that is -1 filled in.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = mesh_sizes(config)
    given = math.prod(size for size in sizes.values() if size != -1)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if open_axes:
        sizes[open_axes[0]] = devices // given
    if math.prod(sizes.values()) != devices:
        asked = ", ".join(f"{axis}={size}" for axis, size in mesh_sizes(config).items())
        raise UserError(
            f"config.mesh: {asked} does not fill {devices} devices; the sizes must multiply to "
            f"{devices}, and one may be -1"
        )
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over devices, in the order that suits their interconnect.

    Several slices split the axis `data`, whose gradients alone cross the network between them.

    Args:
      config: sizes of the axes.
      devices: default: all devices of all hosts.

    Raises:
      UserError: see `mesh_shape`; or `data` is no multiple of the number of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
        return _mesh(grid, sizes)
    if sizes["data"] % slices:
        raise UserError(
            f"config.mesh.data: {sizes['data']} does not divide among {slices} slices; give a "
            f"multiple of {slices}"
        )
    inside = sizes | {"data": sizes["data"] // slices}
    between = dict.fromkeys(sizes, 1) | {"data": slices}
    grid = mesh_utils.create_hybrid_device_mesh(
        tuple(inside.values()),
        tuple(between.values()),
        devices,
        allow_split_physical_axes=True,
    )
    return _mesh(grid, sizes)


def _mesh(grid: Any, sizes: Mapping[str, int]) -> Mesh:
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def check_length(mesh: Mesh | AbstractMesh, length: int, loss_chunks: int) -> None:
    """Raises UserError if the mesh and the chunks of the loss do not divide a sequence."""
    parts = axis_size(mesh, "length")
    if length % (parts * loss_chunks):
        raise UserError(
            f"config.data.length: {length} does not divide among {parts} device(s) × "
            f"compute.loss_chunks={loss_chunks}; make it a multiple of {parts * loss_chunks}, or "
            "change config.mesh.sequence"
        )


def axis_size(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """Returns into how many parts the mesh splits a logical axis."""
    return math.prod(mesh.shape[name] for name in mesh_axes(axis))


def device_bytes(device: jax.Device) -> int:
    """Returns the memory of a device, which need not be there; 0 if unknown, as on CPUs."""
    for generation in GENERATIONS.values():
        if device.device_kind.startswith(generation.device_kinds):
            return generation.hbm_bytes // generation.devices_per_chip
    stats = device.memory_stats() if device.platform == "gpu" else None
    return int((stats or {}).get("bytes_limit", 0))


def sharding(mesh: Mesh | AbstractMesh, axes: Sequence[str]) -> NamedSharding:
    """Returns the sharding of an array with these logical axes."""
    return NamedSharding(mesh, partition_spec(axes))


def param_shardings(
    mesh: Mesh | AbstractMesh, declarations: Mapping[str, Declaration]
) -> dict[str, NamedSharding]:
    """Returns path → sharding of every parameter.

    Raises:
      UserError: a mesh axis does not divide the dimension it splits; names both.
    """
    for path, declaration in declarations.items():
        for axis, size in zip(declaration.axes, declaration.shape, strict=True):
            parts = axis_size(mesh, axis)
            if size % parts:
                raise UserError(
                    f"config.mesh.{'+'.join(mesh_axes(axis))}: {parts} does not divide "
                    f"config.model.{axis}={size} ({path}); choose a divisor of {size}"
                )
    return {path: sharding(mesh, d.axes) for path, d in declarations.items()}


def abstract_params(
    declarations: Mapping[str, Declaration], mesh: Mesh | AbstractMesh
) -> dict[str, Any]:
    """Returns the parameters as nested shapes with shardings, without allocating them.

    Raises:
      UserError: see `param_shardings`.
    """
    return _abstract(declarations, param_shardings(mesh, declarations))


def abstract_params_on_any_mesh(
    declarations: Mapping[str, Declaration], mesh: Mesh
) -> dict[str, Any]:
    """Returns the same as `abstract_params`, replicated along axes that the mesh does not divide.

    A mesh is chosen for the model that is trained; the source of its growth and its teacher are
    smaller.
    """
    shardings = {
        path: sharding(
            mesh,
            [
                axis if size % axis_size(mesh, axis) == 0 else "features"
                for axis, size in zip(declaration.axes, declaration.shape, strict=True)
            ],
        )
        for path, declaration in declarations.items()
    }
    return _abstract(declarations, shardings)


def _abstract(
    declarations: Mapping[str, Declaration], shardings: Mapping[str, NamedSharding]
) -> dict[str, Any]:
    return tree.unflatten(
        {
            path: jax.ShapeDtypeStruct(d.shape, d.dtype, sharding=shardings[path])
            for path, d in declarations.items()
        }
    )


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Fixes an activation's sharding inside jit; without a mesh in context it does nothing.

    Positions that the mesh does not divide, such as those of a generated token, are not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    whole = {"length", "residual_length"}
    axes = [
        "features" if axis in whole and size % axis_size(mesh, axis) else axis
        for axis, size in zip(axes, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, _spec_of_activation(axes))


def gather_residual(x_BxSxE: jax.Array) -> jax.Array:
    """Gives a part of the residual stream the positions that a layer's products read.

    Where the mesh splits both alike nothing moves, and no constraint holds back XLA's fusion: for
    Llama-2-7B on 256 chips one cost 6% of a step (benchmarks/aot.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or axis_size(mesh, "residual_length") == axis_size(mesh, "length"):
        return x_BxSxE
    return constrain(x_BxSxE, ("batch", "length", "features"))


def split_by_width(x_BxSxE: jax.Array) -> jax.Array:
    """Splits rows of the embedding as its width, on a mesh that holds copies of the table.

    Their gradients then take the same way back, and copies exchange those of the table alone;
    XLA would gather the whole batch's gradients on every copy, which may be another slice.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or x_BxSxE.shape[-1] % axis_size(mesh, "embed"):
        return x_BxSxE
    width = mesh_axes("embed")
    with rules_without(width):
        if axis_size(mesh, "batch") == 1:
            return x_BxSxE
        spec = (*partition_spec(("batch",)), PartitionSpec.UNCONSTRAINED, width or None)
    return jax.lax.with_sharding_constraint(x_BxSxE, PartitionSpec(*spec))
