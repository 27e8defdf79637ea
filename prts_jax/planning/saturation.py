"""The saturation law: tokens after growth gain less, the more tokens the base has seen.

Source: Liew and Kato, arXiv 2510.06548: L(D1, D2) = A·D1^(−α1)·D2^(−α2 + α3·log D1) + E, fitted to
growth by stacking and by width, and to continual pretraining, of Llamas of up to 1.1B parameters.
"""

import math
from typing import Any, NamedTuple

from prts_jax.errors import UserError

SOURCE = "arXiv 2510.06548"


class Constants(NamedTuple):
    """Constants of the law for one data set, base and growth, as the study's tables list them."""

    a: float
    alpha1: float
    alpha2: float
    alpha3: float
    e: float

    def exponent(self, d1: float) -> float:
        """Returns the exponent of D2: α2 − α3·ln D1. Where it is 0, more tokens gain nothing."""
        return self.alpha2 - self.alpha3 * math.log(d1)

    def loss(self, d1: float, d2: float) -> float:
        """Returns L in nats per token.

        Args:
          d1: tokens of the base.
          d2: tokens after growth.
        """
        return self.a * d1**-self.alpha1 * d2 ** -self.exponent(d1) + self.e


def parse(text: str) -> Constants:
    """Reads "A,ALPHA1,ALPHA2,ALPHA3,E".

    Raises:
      UserError: it is something else.
    """
    try:
        constants = Constants(*map(float, text.split(",")))
    except (TypeError, ValueError):
        constants = Constants(*[math.nan] * 5)
    if not all(math.isfinite(value) and value >= 0 for value in constants):
        raise UserError(
            f"--saturation={text}: the law has five constants of at least 0, A,ALPHA1,ALPHA2,"
            f"ALPHA3,E; take those of the study's table for your set-up ({SOURCE})"
        )
    return constants


def advice(d1: float, d2: float, text: str) -> dict[str, Any]:
    """Returns what the law says of a plan.

    Args:
      d1: tokens of the base.
      d2: tokens after growth.
      text: its constants, see `parse`; "" if none are given.

    Raises:
      UserError: the text is no five constants, or the law overflows with them.
    """
    loss = exponent = None
    value = "--saturation evaluates it with the constants of the study's table"
    if text:
        constants = parse(text)
        try:
            loss, exponent = constants.loss(d1, d2), constants.exponent(d1)
        except OverflowError as error:
            raise UserError(
                f"--saturation={text}: gives no finite loss; check the constants"
            ) from error
        value = f"L = {loss:.4g} and D2's exponent is {exponent:.4g} with --saturation={text}"
    return {
        "statement": "L(D1, D2) = A·D1^(−α1)·D2^(−α2 + α3·ln D1) + E: the longer the base trains "
        f"(D1), the less each token after growth (D2) gains; {value}",
        "loss": loss,
        "exponent": exponent,
        "source": SOURCE,
        "range": "Llamas of up to 1.1B parameters; the constants belong to one data set and one "
        "growth",
    }
