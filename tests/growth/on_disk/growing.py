"""Growth of checkpoints as the tests ask for it, by one mode."""

from prts_jax.growth.on_disk.grow import grow_checkpoint


def stream(source, target, growth_map, **options):
    return grow_checkpoint(source, target, growth_map, "stream", **options)


def link(source, target, growth_map):
    return grow_checkpoint(source, target, growth_map, "reference")
