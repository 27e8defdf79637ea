"""Operators by name, as a config or a command line asks for them."""

import pytest

from prts_jax.config import CHOICES, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.operators import OPERATORS, make_map

SOURCE = ModelConfig(vocab=64, layers=6, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=32)


def test_a_stack_and_the_same_list_make_the_same_layers():
    stacked = make_map(SOURCE, None, "stack", 4, "")
    listed = make_map(SOURCE, None, "layers", 0, "0:6,0:6,0:6,0:6")
    assert stacked.layers == listed.layers
    assert stacked.target == listed.target


def test_the_config_knows_the_same_operators():
    assert CHOICES["init.growth.operator"] == tuple(OPERATORS)


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
