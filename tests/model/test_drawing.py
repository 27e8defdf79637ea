"""Rows drawn alone are rows of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.model.drawing import draw_rows

KEY = jax.random.fold_in(jax.random.key(3), 7)
ROWS = jnp.array([0, 5, 5, 39, 2])
DRAWS = {
    "normal": jax.random.normal,
    "uniform": lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -0.3, 0.3),
    "bfloat16": lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16),
    "bytes": lambda key, shape: jax.random.bits(key, shape, "uint8"),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("shape", [(40,), (40, 7, 3)])
def test_some_rows_are_those_of_the_whole_array(name, shape):
    whole = np.asarray(DRAWS[name](KEY, shape))
    alone = np.asarray(draw_rows(DRAWS[name], KEY, shape, ROWS))
    np.testing.assert_array_equal(alone, whole[np.asarray(ROWS)])


def test_under_jit_and_vmap_too():
    keys = jax.random.split(KEY, 3)
    whole = jax.vmap(lambda key: jax.random.normal(key, (40, 5)))(keys)
    some = jax.jit(
        lambda keys, rows: jax.vmap(lambda key: draw_rows(jax.random.normal, key, (40, 5), rows))(
            keys
        )
    )(keys, ROWS)
    # Compiled in one with its surroundings, the normal's polynomial may round another way.
    np.testing.assert_array_max_ulp(some, whole[:, np.asarray(ROWS)], maxulp=2)


def test_an_array_beyond_the_counter_is_refused():
    with pytest.raises(ValueError, match="cannot be drawn"):
        draw_rows(jax.random.normal, KEY, (2**20, 2**12), ROWS)
