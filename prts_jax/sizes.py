"""Bytes formatted for people."""


def format_bytes(count: float) -> str:
    """Returns bytes in the largest decimal unit that leaves a number of at least one.

    >>> format_bytes(4.5e9), format_bytes(33024), format_bytes(0)
    ('4.50 GB', '33.02 kB', '0 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"
