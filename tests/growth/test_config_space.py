"""Any `init.growth` for any two models: one line that refuses it, or a map that holds together."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from prts_jax.config import ComputeConfig, GrowthConfig, ModelConfig, to_dict
from prts_jax.errors import UserError
from prts_jax.growth.function_preservation import reasons
from prts_jax.growth.gates import gates_after
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import OPERATORS, make_map
from prts_jax.growth.recipe import changes, recipes
from prts_jax.model.architecture import declare, logits
from prts_jax.tree import flatten, unflatten
from tests.growth.one_device import grow

PLAUSIBLE = {
    "factor": st.integers(0, 4),
    "layers": st.sampled_from(["", "12", "1-2*3", "0:2,0:2", "0,0,1", "123*2", "0:9", "x"]),
    "drop": st.integers(0, 3),
    "every": st.integers(0, 3),
    "block": st.integers(0, 4),
    "order": st.sampled_from(["interleave", "stack", "up"]),
    "widths": st.dictionaries(
        st.sampled_from(["embed", "mlp", "heads", "kv_heads", "head_dim"]),
        st.sampled_from([1, 2, 4, 6, 8, 12, 16, 24]),
        max_size=4,
    ).map(lambda sizes: ",".join(f"{axis}={size}" for axis, size in sizes.items())),
    "weights": st.sampled_from(["even", "uneven", "odd"]),
    "norm": st.sampled_from(["exact", "paper", "none"]),
    "pair_noise": st.sampled_from([0.0, 0.5, -1.0, float("nan")]),
    "noise": st.sampled_from([0.0, 0.0, 0.0, 0.2, 2.0, float("inf")]),
    "seed": st.integers(0, 3),
}
BY_TYPE = {
    int: st.integers(-2, 9),
    float: st.floats(),
    str: st.text(max_size=12),
    bool: st.booleans(),
}


@st.composite
def models(draw, least_layers=0):
    kv_heads = draw(st.sampled_from([1, 2]))
    return ModelConfig(
        vocab=12,
        layers=draw(st.integers(least_layers, 4)),
        embed=draw(st.sampled_from([4, 8, 12])),
        heads=kv_heads * draw(st.sampled_from([1, 2])),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        mlp=draw(st.sampled_from([4, 6, 12])),
        tied=draw(st.booleans()),
    )


@st.composite
def growths(draw):
    """A source, a target or none, an operator, and options: mostly its own, and plausible."""
    operator = draw(st.sampled_from([*OPERATORS, "stak", ""]))
    known = OPERATORS[operator].options if operator in OPERATORS else ()
    fields = {field.name: field for field in dataclasses.fields(GrowthConfig)}
    given_names = {name for name in known if draw(st.integers(0, 3))}
    if not draw(st.integers(0, 3)):
        given_names.add(draw(st.sampled_from(sorted(fields.keys() - {"operator"}))))
    options = {}
    for name in sorted(given_names):
        by_type = BY_TYPE[type(fields[name].default)]
        sensible = PLAUSIBLE.get(name, by_type)
        options[name] = draw(sensible if draw(st.integers(0, 9)) else by_type)
    source = draw(models())
    target = None
    if draw(st.integers(0, 2)) == 0:
        changed = {
            axis: getattr(source, axis) * draw(st.sampled_from([1, 1, 2, 3]))
            for axis in ("layers", "embed", "heads", "kv_heads", "mlp")
        }
        target = dataclasses.replace(source, **changed)
    return source, target, operator, options


def divisors(number):
    return st.sampled_from([part for part in range(1, number + 1) if number % part == 0])


@st.composite
def depth_options(draw, operator, layers):
    """Options that make sense for a source of so many layers (at least one)."""
    if operator == "layers":
        listed = draw(st.lists(st.integers(0, layers - 1), min_size=layers, max_size=2 * layers))
        return {"layers": ",".join(map(str, listed)) + f",{layers - 1}:{layers}"}
    if operator == "solar":
        return {"drop": draw(st.integers(min(1, layers // 2), layers // 2))}
    if operator in ("block_expansion", "middle"):
        return {next(iter(OPERATORS[operator].options)): draw(divisors(layers))}
    if operator == "last":
        return {"block": draw(st.integers(1, layers))}
    options = {"factor": draw(st.integers(1, 3))}
    if "order" in OPERATORS[operator].options:
        options["order"] = draw(st.sampled_from(["interleave", "stack"]))
    return options


@st.composite
def width_options(draw, operator, source):
    """Options that make sense: some axes wider, by integer factors and others."""
    times = draw(st.sampled_from([1, 2, 3]))
    sizes = {
        "embed": source.embed * draw(st.sampled_from([2, 3, 4])) // 2,
        "mlp": source.mlp + draw(st.sampled_from([0, 1, source.mlp])),
        "kv_heads": source.kv_heads * times,
        "heads": source.heads * times * draw(st.sampled_from([1, 2])),
    }
    if operator != "split":
        sizes["head_dim"] = source.head_dim * draw(st.sampled_from([1, 2, 3]))
    options = {
        "widths": ",".join(f"{axis}={size}" for axis, size in sizes.items()),
        "factor": draw(st.sampled_from([0, 0, 2])),
        "norm": draw(st.sampled_from(["exact", "exact", "paper"])),
    }
    if operator == "split":
        options["weights"] = draw(st.sampled_from(["even", "uneven"]))
        options["pair_noise"] = draw(st.sampled_from([0.0, 0.5]))
    return options


@st.composite
def sensible_growths(draw, operators=tuple(OPERATORS)):
    """Growths that most operators can do."""
    operator = draw(st.sampled_from(operators))
    source = draw(models(least_layers=1))
    is_wide = "widths" in OPERATORS[operator].options
    options = draw(
        width_options(operator, source) if is_wide else depth_options(operator, source.layers)
    )
    options["noise"] = draw(st.sampled_from([0.0, 0.0, 0.0, 0.2]))
    return source, None, operator, options


def made_or_none(growth) -> GrowthMap | None:
    source, target, operator, options = growth
    values = to_dict(GrowthConfig()) | options | {"operator": operator}
    try:
        return make_map(source, target, **values)
    except UserError as error:
        assert str(error).strip()
        assert "\n" not in str(error)
        event("refused")
        return None


@settings(max_examples=300)
@given(growths() | sensible_growths())
def test_a_growth_is_refused_in_one_line_or_makes_a_map_that_holds_together(growth):
    growth_map = made_or_none(growth)
    if growth_map is None:
        return
    event(growth_map.operator)
    growth_map.validate()
    source, target, *_ = growth
    assert growth_map.source == source
    if target is not None:  # but for the epsilon, which exact growth of the stream scales
        assert dataclasses.replace(growth_map.target, norm_eps=target.norm_eps) == target
    again = GrowthMap.from_json(json.loads(json.dumps(growth_map.to_json(), allow_nan=False)))
    assert (again, again.digest()) == (growth_map, growth_map.digest())
    assert (reasons(growth_map) == []) == growth_map.function_preserving()
    assert 0 <= growth_map.connection_rate() <= 1
    assert str(growth_map).startswith(growth_map.summary())


def sensible_maps(operators=tuple(OPERATORS)):
    built = sensible_growths(operators).map(made_or_none)
    return built.filter(lambda growth_map: growth_map is not None)


@functools.cache
def declared(model: ModelConfig):
    return declare(model)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(sensible_maps())
def test_the_mesh_makes_the_shapes_that_the_target_declares(growth_map):
    event(growth_map.operator)
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in declared(growth_map.source).items()
        if growth_map.source.layers or not leaf.stacked
    }
    grown = jax.eval_shape(functools.partial(grow, growth_map=growth_map), unflatten(abstract))
    targets = declared(growth_map.target)
    assert {path: (leaf.shape, leaf.dtype.name) for path, leaf in flatten(grown).items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in targets.items()
    }
    done = changes(growth_map, recipes(growth_map, targets))
    assert {path for paths in done.values() for path in paths} == targets.keys()


def random_params(model: ModelConfig):
    """Parameters about as large as fresh ones, with norms that are not all ones."""
    random = np.random.default_rng(0)
    leaves = {}
    for path, leaf in declared(model).items():
        values = random.normal(size=leaf.shape) / leaf.fan_in**0.5
        if leaf.scales_stream:
            values = random.uniform(0.5, 1.5, leaf.shape)
        leaves[path] = jnp.asarray(values, leaf.dtype)
    return unflatten(leaves)


@pytest.mark.slow
@settings(max_examples=8, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    sensible_maps(
        ("zero", "block_expansion", "random", "split", "zero_width", "random_width")
    ).filter(GrowthMap.function_preserving)
)
def test_what_is_called_function_preserving_is(growth_map):
    event(growth_map.operator)
    source = growth_map.source
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, source.vocab, (2, 8)), jnp.int32)
    compute = ComputeConfig(dtype="float32", attention="xla")

    @functools.partial(jax.jit, static_argnums=1)
    def apply(params, model, gates=None):
        return logits(params, tokens, model, compute, gates=gates)

    params = random_params(source)
    before = apply(params, source)
    gates = gates_after(growth_map, 0)
    after = apply(grow(params, growth_map), growth_map.target, gates)
    difference = float(jnp.abs(after - before).max() / jnp.abs(before).max())
    assert difference <= 2e-6, growth_map
