"""Lengths are rounded up to a few, so that a few programs are compiled."""

SMALLEST = 32


def bucket(length: int, largest: int = 0) -> int:
    """Returns the smallest of 32, 48, 64, 96, 128, 192, … that holds `length`.

    At most a third of a row is padding beyond the smallest.

    Args:
      length: tokens.
      largest: never more than this, where it holds the length; 0: no limit.

    >>> [bucket(n) for n in (1, 33, 64, 65, 1000)]
    [32, 48, 64, 96, 1024]
    """
    size = SMALLEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, largest) if length <= largest else size
