"""How every command reads its arguments."""

import argparse
from typing import Any, NoReturn

from prts_jax.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose refusals are one line, and whose flags are written out in full."""

    def __init__(self, **options: Any) -> None:
        """Takes what `argparse.ArgumentParser` takes."""
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print, as a `UserError`."""
        raise UserError(f"{message}; see `{self.prog} --help`")
