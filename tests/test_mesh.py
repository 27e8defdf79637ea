"""Devices → mesh and logical axes → shardings. Several devices: model/test_sharded_model.py."""

import dataclasses
import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from prts_jax.config import MeshConfig, ModelConfig
from prts_jax.config.rules import FIXED, MESH_AXES, RULES, Rule, parse_rules
from prts_jax.errors import UserError
from prts_jax.mesh import (
    axis_size,
    check_length,
    constrain,
    make_mesh,
    mesh_shape,
    param_shardings,
    partition_spec,
    sharding_rules,
)
from prts_jax.model.architecture import declare

MODEL = ModelConfig(vocab=64, layers=3, embed=48, heads=4, kv_heads=2, head_dim=8, mlp=96)


def abstract_mesh(data: int, fsdp: int, tensor: int, sequence: int = 1) -> AbstractMesh:
    """A mesh without devices: enough for shardings."""
    return AbstractMesh((data, fsdp, sequence, tensor), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


@given(st.tuples(*[st.integers(1, 8)] * 4), st.sampled_from([None, *MESH_AXES]))
def test_sizes_that_fill_the_devices_are_kept_and_an_open_one_is_filled(
    values: tuple[int, ...], left_open: str | None
) -> None:
    sizes = dict(zip(MESH_AXES, values, strict=True))
    asked = sizes | ({left_open: -1} if left_open else {})
    assert mesh_shape(MeshConfig(**asked), math.prod(values)) == sizes


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
    assert dict(make_mesh(MeshConfig()).shape) == dict.fromkeys(MESH_AXES, 1)


def test_every_parameter_is_split_as_the_rules_say() -> None:
    shardings = param_shardings(abstract_mesh(2, 2, 2), declare(MODEL))
    specs = {path: sharding.spec for path, sharding in shardings.items()}
    embed = ("fsdp", "sequence")
    into_heads = PartitionSpec(None, embed, "tensor", None)
    assert specs == {
        "token_embedding": PartitionSpec("tensor", embed),
        "layers/attention_norm": PartitionSpec(None, embed),
        "layers/attention/q": into_heads,
        "layers/attention/k": into_heads,
        "layers/attention/v": into_heads,
        "layers/attention/o": PartitionSpec(None, "tensor", None, embed),
        "layers/mlp_norm": PartitionSpec(None, embed),
        "layers/mlp/gate": PartitionSpec(None, embed, "tensor"),
        "layers/mlp/up": PartitionSpec(None, embed, "tensor"),
        "layers/mlp/down": PartitionSpec(None, "tensor", embed),
        "final_norm": PartitionSpec(embed),
        "head": PartitionSpec(embed, "tensor"),
    }


def test_activations_are_split_by_batch_and_heads() -> None:
    assert partition_spec(("batch", "heads", "length", "head_dim")) == PartitionSpec(
        ("data", "fsdp"), "tensor", "sequence", None
    )


def test_every_axis_of_a_mesh_has_a_size_in_the_config() -> None:
    assert set(MESH_AXES) <= {field.name for field in dataclasses.fields(MeshConfig)}
    assert {axis for rule in RULES.values() for axis in as_tuple(rule)} == set(MESH_AXES)


def as_tuple(rule: Rule) -> tuple[str, ...]:
    return (rule,) if isinstance(rule, str) else rule or ()


@pytest.mark.parametrize("axis", FIXED)
def test_layers_heads_and_keys_stay_whole(axis: str) -> None:
    """Growth and checkpoints go layer by layer; attention needs whole heads and all keys."""
    assert RULES[axis] is None
    with pytest.raises(UserError, match=rf"config\.mesh\.rules: {axis} cannot be split"):
        parse_rules(f"{axis}=fsdp")


def test_rules_of_the_config_replace_the_defaults_within_a_context() -> None:
    whole = partition_spec(("embed", "vocab"))
    with sharding_rules(parse_rules(" embed = none, vocab=fsdp + tensor ,")):
        assert partition_spec(("embed", "vocab")) == PartitionSpec(None, ("fsdp", "tensor"))
        assert axis_size(abstract_mesh(2, 3, 5), "vocab") == 15
    assert (
        partition_spec(("embed", "vocab")) == whole == PartitionSpec(("fsdp", "sequence"), "tensor")
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("vocab", "'vocab' is not AXIS=MESH_AXES"),
        ("vocab=fsdp+fsdp", "'vocab=fsdp\\+fsdp' is not AXIS=MESH_AXES"),
        ("vocab=", "mesh axis '' is none of data, fsdp, sequence, tensor"),
        ("vocab=fsdp+none", "mesh axis 'none' is none of"),
        ("vocabulary=fsdp", "axis 'vocabulary' is unknown; did you mean 'vocab'"),
        ("heads=fsdp", "heads and kv_heads must be split alike"),
    ],
)
def test_mistakes_in_rules_are_named(rules: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"config\.mesh\.rules: .*{message}"):
        parse_rules(rules)


def test_one_mesh_axis_cannot_split_two_axes_of_a_parameter() -> None:
    mesh, x = abstract_mesh(2, 2, 2), jax.ShapeDtypeStruct((4, 6, 64), "float32")
    with sharding_rules(parse_rules("vocab=fsdp+tensor")):
        with pytest.raises(UserError, match="splits two of the axes embed, vocab"):
            param_shardings(mesh, declare(MODEL))
        with jax.sharding.use_abstract_mesh(mesh):
            jaxpr = jax.make_jaxpr(lambda x: constrain(x, ("batch", "length", "vocab")))(x)
    # Of an activation it splits the first.
    spec = jaxpr.eqns[0].params["sharding"].spec
    assert spec == PartitionSpec(("data", "fsdp"), "sequence", "tensor")


@pytest.mark.parametrize(("length", "chunks"), [(12, 1), (16, 4)])
def test_a_mesh_divides_the_positions_of_every_chunk(length: int, chunks: int) -> None:
    check_length(abstract_mesh(1, 1, 1, sequence=8), 32, 4)
    with pytest.raises(UserError, match=rf"config\.data\.length: {length} does not divide among 8"):
        check_length(abstract_mesh(1, 1, 1, sequence=8), length, chunks)


def test_axis_size_multiplies_the_mesh_axes_of_a_rule() -> None:
    mesh = abstract_mesh(2, 3, 5, sequence=7)
    axes = ("batch", "embed", "mlp", "layers", "residual_length")
    sizes = [axis_size(mesh, axis) for axis in axes]
    assert sizes == [6, 21, 5, 1, 35]


@pytest.mark.parametrize(
    ("key", "parts", "message"),
    [
        (
            "embed",
            (1, 5, 1),
            r"config\.mesh\.fsdp\+sequence: 5 does not divide config\.model\.embed=48",
        ),
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
    assert equation.params["sharding"].spec == PartitionSpec(("data", "fsdp"), "sequence", "tensor")
