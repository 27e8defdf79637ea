"""Operators by name, as a config or a command line asks for them."""

import math

import pytest

from prts_jax.config import OPERATOR_GROUP, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.operators import make_map

SOURCE = ModelConfig(vocab=64, layers=6, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=32)


def test_a_stack_and_the_same_list_make_the_same_layers():
    stacked = make_map(SOURCE, None, "stack", 4, "")
    listed = make_map(SOURCE, None, "layers", 0, "0:6,0:6,0:6,0:6")
    assert stacked.layers == listed.layers
    assert stacked.target == listed.target


@pytest.mark.parametrize(
    ("operator", "factor", "layers", "message"),
    [
        ("stak", 4, "", "'stak' is unknown; did you mean 'stack'"),
        ("stack", 4, "0:6", "growth.layers: is '0:6', but the operator 'stack' takes no layers"),
        ("layers", 4, "0:6", "growth.factor: is 4, but the operator 'layers' takes no factor"),
        ("layers", 0, "", "growth.layers: ''"),
    ],
)
def test_what_an_operator_does_not_take_is_refused(operator, factor, layers, message):
    with pytest.raises(UserError, match=message):
        make_map(SOURCE, None, operator, factor, layers)


def test_inherited_options_that_an_operator_does_not_take_are_ignored():
    inherited = {"gate_steps": 5, "block": 2, "options": "own=1", "seed": 3}
    given = make_map(SOURCE, None, "stack", 2, inherited=inherited.keys(), **inherited)
    assert given == make_map(SOURCE, None, "stack", 2)
    noisy = make_map(SOURCE, None, "stack", 2, inherited=["seed"], seed=3, noise=0.1)
    assert noisy == make_map(SOURCE, None, "stack", 2, seed=3, noise=0.1)
    with pytest.raises(UserError, match="has a key of its own"):
        make_map(SOURCE, None, "stack", 2, inherited=["options"], options="block=1")


MIRROR = """
import dataclasses
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operator import operator

def mirror(source, target, options):
    layers = (*range(source.layers), *reversed(range(source.layers)))
    grown = target or dataclasses.replace(source, layers=len(layers))
    quiet = len(layers) - int(options.get("quiet", 0))
    zeroed = tuple(range(quiet, len(layers)))
    return GrowthMap("mirror", dict(options), source, grown, layers, zeroed)

@operator("registered", quiet="layers with zero outputs")
def registered(source, target, options):
    return mirror(source, target, options)

def nothing(source, target, options):
    return None
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package of another author, as pip would have installed it."""
    (tmp_path / "mirrors.py").write_text(MIRROR)
    metadata = tmp_path / "mirrors-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mirrors\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{OPERATOR_GROUP}]\nmirror = mirrors:mirror\nnothing = mirrors:nothing\n"
        "registered = mirrors:registered\n"
        "broken = mirrors:gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_an_operator_of_another_package_is_one_of_ours():
    growth_map = make_map(SOURCE, None, "mirror", options="quiet=6")
    assert growth_map.layers == (*range(6), *reversed(range(6)))
    assert growth_map.function_preserving()
    assert growth_map.options == {"quiet": "6"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pair_noise=0.5", "growth.options: pair_noise has a key of its own"),
        ("depth=2", "the operator 'split' takes no depth"),
    ],
)
def test_options_as_text_are_an_operators_own(options, message):
    with pytest.raises(UserError, match=message):
        make_map(SOURCE, None, "split", widths="mlp=64", options=options)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        ("miror", "", "'miror' is unknown; did you mean 'mirror'"),
        ("mirror", "quiet", "growth.options: 'quiet'; write name=value"),
        ("mirror", "quiet=13", "zeroed target layers"),
        ("registered", "loud=1", "the operator 'registered' takes no loud"),
        ("nothing", "", "returns None, not a GrowthMap"),
        ("broken", "", "cannot be loaded from mirrors:gone"),
    ],
)
def test_an_operator_of_another_package_that_does_not_work_is_named(operator, options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_map(SOURCE, None, operator, options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_is_refused_by_name(value):
    model = ModelConfig()
    with pytest.raises(UserError, match=r"growth\.learn_rate: is -?(inf|nan); it must be a finite"):
        make_map(model, None, "learned", factor=2, learn_rate=value)
