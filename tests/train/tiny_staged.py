"""The tiny run in two stages, `--config=tests/train/tiny_staged.py`: 1 layer, then 2."""

from prts_jax import config


def get_config():
    c = config.inherit("tiny.py", __file__)
    c.growth.stages = ({"steps": 2, "model": {"layers": 1}}, {"steps": 2})
    return c
