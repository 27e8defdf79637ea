"""The outcome of a check of `prts tpu doctor`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Outcome of a check: what it saw, and the command that fixes it ("" where all is well)."""

    title: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        """Returns one line."""
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"{'FIX ' if self.fix else 'ok  '}{self.title}: {self.text}{fix}"
