"""Growth of a checkpoint into another, in one call."""

from prts_jax.growth.on_disk.grow import choose, execute
from prts_jax.growth.on_disk.plan import plan


def grow_checkpoint(source, target, growth_map, mode="auto", *, progress=None, optimizer="reset"):
    return execute(choose(plan(source, target, growth_map, optimizer), mode), progress)


def stream(source, target, growth_map, **options):
    return grow_checkpoint(source, target, growth_map, "stream", **options)


def link(source, target, growth_map):
    return grow_checkpoint(source, target, growth_map, "reference")
