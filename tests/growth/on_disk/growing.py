"""Growth of a checkpoint into another in one call, and growth of arrays in NumPy."""

from prts_jax.growth.on_disk.grow import choose, execute
from prts_jax.growth.on_disk.plan import plan
from tests.checkpoint.tiny import DECLARED


def grow_checkpoint(source, target, growth_map, mode="auto", *, progress=None, optimizer="reset"):
    return execute(choose(plan(source, target, growth_map, optimizer), mode), progress)


def stream(source, target, growth_map, **options):
    return grow_checkpoint(source, target, growth_map, "stream", **options)


def link(source, target, growth_map):
    return grow_checkpoint(source, target, growth_map, "reference")


def grown_in_numpy(values, layers, declarations=DECLARED):
    """Returns the layers by index, and the other arrays as they are."""
    return {
        path: value[list(layers)] if declarations[path].stacked else value
        for path, value in values.items()
    }
