"""Tiles of the splash kernels, as `config.compute.splash_blocks` gives them."""

from prts_jax.config.reading import nearest
from prts_jax.errors import UserError

SPLASH_BLOCKS = {
    "q": "block_q",
    "kv": "block_kv",
    "kv_compute": "block_kv_compute",
    "q_backward": "block_q_dkv",
    "kv_backward": "block_kv_dkv",
    "kv_backward_compute": "block_kv_dkv_compute",
}
"""Name in the config → name of the kernels' argument."""


def parse_splash_blocks(text: str) -> dict[str, int]:
    """Returns argument of the kernels → positions of a tile, a multiple of 128.

    Raises:
      UserError: an entry is not of this form, or a name is unknown.

    >>> parse_splash_blocks("q=1024, kv_backward=512")
    {'block_q': 1024, 'block_kv_dkv': 512}
    """
    blocks = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = (part.strip() for part in entry.partition("="))
        if name not in SPLASH_BLOCKS:
            raise UserError(
                f"config.compute.splash_blocks: {name!r} is unknown; {nearest(name, SPLASH_BLOCKS)}"
            )
        if not (size.isascii() and size.isdigit() and int(size) and int(size) % 128 == 0):
            raise UserError(
                f"config.compute.splash_blocks: {entry!r}: is not a multiple of 128; write for "
                "example q=1024,kv=512"
            )
        blocks[SPLASH_BLOCKS[name]] = int(size)
    for outer, inner in (("kv", "kv_compute"), ("kv_backward", "kv_backward_compute")):
        sizes = [blocks.get(SPLASH_BLOCKS[name]) for name in (outer, inner)]
        if sizes[0] and sizes[1] and sizes[0] % sizes[1]:
            raise UserError(
                f"config.compute.splash_blocks: {inner}={sizes[1]} does not divide "
                f"{outer}={sizes[0]}"
            )
    return blocks
