"""A map in words: why it does not keep the function, and what becomes of each leaf."""

import pytest

from prts_jax.config import ModelConfig
from prts_jax.growth.function_preservation import reasons
from prts_jax.growth.operators import make_map
from prts_jax.growth.recipe import changes, recipes
from prts_jax.model.architecture import declare

SOURCE = ModelConfig(vocab=48, layers=2, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)


@pytest.mark.parametrize(
    ("operator", "options", "said"),
    [
        ("stack", {"factor": 2}, ["more than once"]),
        ("layers", {"layers": "0:2"}, []),
        ("layers", {"layers": "1,0"}, ["in another order"]),
        ("zero", {"factor": 2}, []),
        ("zero", {"factor": 2, "noise": 0.2}, ["20% noise"]),
        ("random", {"factor": 2}, []),
        ("random", {"factor": 2, "gate_steps": 0}, ["fresh layers add"]),
        ("split", {"widths": "embed=32"}, []),
        ("split", {"widths": "embed=24"}, ["the norms see another mean square"]),
        ("split", {"widths": "embed=32", "norm": "paper"}, ["the norms"]),
        ("split", {"widths": "mlp=48", "factor": 2}, ["more than once"]),
        ("zero_width", {"widths": "embed=24,mlp=30"}, []),
        ("zero_width", {"widths": "embed=24", "norm": "paper"}, ["the norms"]),
        ("random_width", {"widths": "embed=24,heads=8", "factor": 2}, []),
        ("random_width", {"widths": "embed=24", "norm": "paper"}, ["the norms"]),
        ("random_width", {"widths": "embed=24", "gate_steps": 0}, ["new entries are random"]),
    ],
)
def test_there_is_a_reason_just_where_the_function_is_not_kept(operator, options, said):
    growth_map = make_map(SOURCE, None, operator, **options)
    actual = reasons(growth_map)
    assert growth_map.function_preserving() == (not actual)
    assert len(actual) == len(said)
    for clause, part in zip(actual, said, strict=True):
        assert part in clause


def test_growth_in_depth_copies_the_layers_and_keeps_the_rest():
    growth_map = make_map(SOURCE, None, "zero", factor=2)
    done = changes(growth_map, recipes(growth_map, declare(growth_map.target)))
    assert done["kept"] == ["final_norm", "head", "token_embedding"]
    assert done["outputs zeroed"] == ["layers/attention/o", "layers/mlp/down"]
    assert "layers/mlp/up" in done["layers copied"]
    assert done.keys() == {"kept", "layers copied", "outputs zeroed"}


def test_growth_of_the_mlp_alone_widens_three_leaves():
    growth_map = make_map(SOURCE, None, "split", widths="mlp=48")
    done = changes(growth_map, recipes(growth_map, declare(growth_map.target)))
    assert done["widened"] == ["layers/mlp/down", "layers/mlp/gate", "layers/mlp/up"]
    assert done.keys() == {"kept", "widened"}


def test_noise_leaves_the_norms_alone_and_fresh_layers_are_drawn():
    growth_map = make_map(SOURCE, None, "random", factor=2, noise=0.1)
    declarations = declare(growth_map.target)
    done = changes(growth_map, recipes(growth_map, declarations))
    assert done["kept"] == ["final_norm"]
    norms = {"final_norm", "layers/attention_norm", "layers/mlp_norm"}
    assert set(done["noise mixed in"]) == declarations.keys() - norms
    assert set(done["layers drawn"]) == {path for path in declarations if path.startswith("layers")}


def test_every_leaf_is_under_something():
    growth_map = make_map(SOURCE, None, "zero_width", widths="embed=24", factor=2)
    done = changes(growth_map, recipes(growth_map, declare(growth_map.target)))
    assert {path for paths in done.values() for path in paths} == declare(SOURCE).keys()
