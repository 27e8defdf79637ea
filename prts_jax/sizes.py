"""Bytes and seconds formatted for people."""


def format_bytes(count: float) -> str:
    """Returns bytes in the largest decimal unit that leaves a number of at least one.

    >>> format_bytes(4.5e9), format_bytes(33024), format_bytes(0)
    ('4.50 GB', '33.02 kB', '0 B')
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Returns an estimate in seconds, minutes or hours.

    >>> format_seconds(0.2), format_seconds(75), format_seconds(8000)
    ('under 1 s', 'about 75 s', 'about 2 h 13 min')
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    return (
        f"about {minutes} min" if minutes < 120 else f"about {minutes // 60} h {minutes % 60} min"
    )
