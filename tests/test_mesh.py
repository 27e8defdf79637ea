"""Devices → mesh and logical axes → shardings. Several devices: model/test_sharded_model.py."""

import dataclasses

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from prts_jax.config import MeshConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.mesh import (
    RULES,
    axis_size,
    constrain,
    make_mesh,
    mesh_shape,
    param_shardings,
    partition_spec,
    start_distributed,
)
from prts_jax.model.architecture import declare

MODEL = ModelConfig(vocab=64, layers=3, embed=48, heads=4, kv_heads=2, head_dim=8, mlp=96)


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh without devices: enough for shardings."""
    names = ("data", "fsdp", "tensor")
    return AbstractMesh((data, fsdp, tensor), names, axis_types=(AxisType.Auto,) * 3)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.sampled_from([None, 0, 1, 2]))
def test_sizes_that_fill_the_devices_are_kept_and_an_open_one_is_filled(
    data: int, fsdp: int, tensor: int, left_open: int | None
) -> None:
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    asked = dict(sizes)
    if left_open is not None:
        asked[list(asked)[left_open]] = -1
    assert mesh_shape(MeshConfig(**asked), data * fsdp * tensor) == sizes


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        (MeshConfig(fsdp=4), 8),
        (MeshConfig(fsdp=16), 8),
        (MeshConfig(tensor=3), 8),
        (MeshConfig(data=16), 8),
        (MeshConfig(data=-1, fsdp=-1), 8),
    ],
)
def test_sizes_that_do_not_fill_the_devices_are_refused(config: MeshConfig, devices: int) -> None:
    with pytest.raises(UserError, match=r"config\.mesh: .* does not fill 8 devices") as error:
        mesh_shape(config, devices)
    assert "\n" not in str(error.value)


def test_a_mesh_on_this_machine_has_every_axis() -> None:
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_every_parameter_is_split_as_the_rules_say() -> None:
    shardings = param_shardings(abstract_mesh(2, 2, 2), declare(MODEL))
    specs = {path: sharding.spec for path, sharding in shardings.items()}
    into_heads = PartitionSpec(None, "fsdp", "tensor", None)
    assert specs == {
        "token_embedding": PartitionSpec("tensor", "fsdp"),
        "layers/attention_norm": PartitionSpec(None, "fsdp"),
        "layers/attention/q": into_heads,
        "layers/attention/k": into_heads,
        "layers/attention/v": into_heads,
        "layers/attention/o": PartitionSpec(None, "tensor", None, "fsdp"),
        "layers/mlp_norm": PartitionSpec(None, "fsdp"),
        "layers/mlp/gate": PartitionSpec(None, "fsdp", "tensor"),
        "layers/mlp/up": PartitionSpec(None, "fsdp", "tensor"),
        "layers/mlp/down": PartitionSpec(None, "tensor", "fsdp"),
        "final_norm": PartitionSpec("fsdp"),
        "head": PartitionSpec("fsdp", "tensor"),
    }


def test_activations_are_split_by_batch_and_heads() -> None:
    assert partition_spec(("batch", "heads", "length", "head_dim")) == PartitionSpec(
        ("data", "fsdp"), "tensor", None, None
    )


def test_rules_name_mesh_axes_only() -> None:
    known = {field.name for field in dataclasses.fields(MeshConfig)}
    for rule in RULES.values():
        assert {rule} - {None} <= known if not isinstance(rule, tuple) else set(rule) <= known


def test_layers_are_never_split() -> None:
    """Growth and checkpoints go layer by layer."""
    assert RULES["layers"] is None


def test_axis_size_multiplies_the_mesh_axes_of_a_rule() -> None:
    mesh = abstract_mesh(2, 3, 5)
    sizes = {axis: axis_size(mesh, axis) for axis in ("batch", "embed", "mlp", "layers")}
    assert sizes == {"batch": 6, "embed": 3, "mlp": 5, "layers": 1}


@pytest.mark.parametrize(
    ("key", "parts", "message"),
    [
        ("embed", (1, 5, 1), r"config\.mesh\.fsdp: 5 does not divide config\.model\.embed=48"),
        ("vocab", (1, 1, 5), r"config\.mesh\.tensor: 5 does not divide config\.model\.vocab=64"),
        ("mlp", (1, 1, 2), r"config\.mesh\.tensor: 2 does not divide config\.model\.mlp=97"),
        ("kv_heads", (1, 1, 4), r"config\.mesh\.tensor: 4 does not divide .*\.kv_heads=2"),
    ],
)
def test_sizes_that_a_mesh_does_not_divide_name_the_config_keys(
    key: str, parts: tuple[int, int, int], message: str
) -> None:
    model = dataclasses.replace(MODEL, mlp=97) if key == "mlp" else MODEL
    declarations = declare(model)
    only = {path: d for path, d in declarations.items() if key in d.axes}
    with pytest.raises(UserError, match=message):
        param_shardings(abstract_mesh(*parts), only)


def test_constrain_does_nothing_without_a_mesh() -> None:
    x = jax.numpy.ones((2, 3))
    assert constrain(x, ("batch", "features")) is x


def test_constrain_fixes_the_sharding_that_the_rules_say() -> None:
    x = jax.ShapeDtypeStruct((4, 6, 8), "float32")
    with jax.sharding.use_abstract_mesh(abstract_mesh(2, 2, 2)):
        jaxpr = jax.make_jaxpr(lambda x: constrain(x, ("batch", "length", "mlp")))(x)
    [equation] = jaxpr.eqns
    assert equation.primitive.name == "sharding_constraint"
    assert equation.params["sharding"].spec == PartitionSpec(("data", "fsdp"), None, "tensor")


def test_one_host_starts_nothing() -> None:
    assert start_distributed() == (1, 0)


def test_a_missing_host_is_an_error() -> None:
    with pytest.raises(UserError, match=r"--processes: 2 expected, 1 joined"):
        start_distributed(processes=2)


def test_an_index_without_a_coordinator_is_refused() -> None:
    with pytest.raises(UserError, match="--process: only with --coordinator"):
        start_distributed(process=1)


@pytest.mark.parametrize(("processes", "process"), [(0, -1), (2, -1), (2, 2)])
def test_a_coordinator_needs_to_know_the_processes(processes: int, process: int) -> None:
    with pytest.raises(UserError, match=r"--coordinator: needs --processes=N"):
        start_distributed(coordinator="localhost:1234", processes=processes, process=process)


@pytest.mark.parametrize("address", ["localhost", ":8476", "host:", "host:port", "host:99999"])
def test_a_coordinator_without_host_or_port_is_refused(address):
    with pytest.raises(UserError, match=f"--coordinator={address}: is not HOST:PORT"):
        start_distributed(coordinator=address, processes=2, process=0)
