"""Scores of requests, their means, and how sure those are.

Requests are taken for independent draws from what could have been asked, and their number for
large (Miller, "Adding Error Bars to Evals", arXiv 2411.00640). A score is r = Σy / Σw over n
requests: w is 1 for accuracies; for losses y is in nats and w counts tokens, or words. What request
i adds to it is u_i = n·(y_i - r·w_i) / Σw (times exp(r) for a perplexity exp(r)), and its standard
error is that of the mean of u: sd(u) / √n, with n - 1 in sd. For accuracies this is what
lm-evaluation-harness prints; for ratios it is the usual linear approximation (Cochran, Sampling
Techniques, on ratio estimators).

Two models that were asked the same are compared by the differences of their u, request by request
(Miller's paired analysis): what makes a request hard for both cancels. Otherwise variances add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LOSS, BITS, ALL = "loss", "bits/byte", "all"
"""Groups of scores on tokens of no task, and the name of all their sources together."""

NORMAL_95 = 1.959964
"""Standard errors on either side of a mean that hold 95% of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two.

    Attributes:
      value: of the score.
      stderr: its standard error; NaN where one request, or none, says nothing of it.
    """

    value: float
    stderr: float

    @property
    def half_width(self) -> float:
        """Half of the 95% interval, which is symmetric."""
        return NORMAL_95 * self.stderr

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the 95% interval."""
        return abs(self.value) > self.half_width

    def to_json(self) -> dict[str, float | None]:
        """Returns value, stderr, low and high (of the 95% interval); null where unknown."""
        low, high = self.value - self.half_width, self.value + self.half_width
        values = {"value": self.value, "stderr": self.stderr, "low": low, "high": high}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True)
class Scores:
    """What one model scored in one measure, request by request.

    Attributes:
      group: the task, or `LOSS` or `BITS`.
      name: the measure: a metric of the task, or a source of the tokens.
      values: float64 [requests], y above.
      weights: float64 [requests], w above.
      subject: says what was measured; scores of different subjects are not compared.
      requests: says what was asked; scores of the same requests are paired.
      exponential: whether the score is exp(r), not r.
    """

    group: str
    name: str
    values: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    subject: str
    requests: str
    exponential: bool = False

    @property
    def estimate(self) -> Estimate:
        """The score and its standard error."""
        ratio = float(self.values.sum() / self.weights.sum())
        return Estimate(_exp(ratio) if self.exponential else ratio, _stderr(self._influence()))

    def minus(self, other: "Scores") -> Estimate | None:
        """Returns this score less another's; None where they measure different things."""
        if self.subject != other.subject or self.exponential != other.exponential:
            return None
        value = self.estimate.value - other.estimate.value
        if self.pairs_with(other):
            return Estimate(value, _stderr(self._influence() - other._influence()))
        return Estimate(value, math.hypot(self.estimate.stderr, other.estimate.stderr))

    def pairs_with(self, other: "Scores") -> bool:
        """Whether both were asked the same, in the same order."""
        return self.requests == other.requests and np.array_equal(self.weights, other.weights)

    def _influence(self) -> np.ndarray:
        ratio = self.values.sum() / self.weights.sum()
        added = (self.values - ratio * self.weights) / self.weights.mean()
        return added * _exp(float(ratio)) if self.exponential else added

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON holds them; weights that are all 1 are left out."""
        lists = {"values": self.values.tolist()}
        if (self.weights != 1).any():
            lists["weights"] = self.weights.tolist()
        names = ("group", "name", "subject", "requests", "exponential")
        return {name: getattr(self, name) for name in names} | lists


def from_json(values: dict[str, Any]) -> Scores:
    """The inverse of `Scores.to_json`.

    Raises:
      ValueError, KeyError, TypeError: these are no scores.
    """
    scores = np.asarray(values["values"], np.float64)
    weights = np.asarray(values.get("weights", np.ones(len(scores))), np.float64)
    if scores.ndim != 1 or scores.shape != weights.shape or not weights.sum() > 0:
        raise ValueError("values and weights are no two lists of one length")
    return Scores(
        group=str(values["group"]),
        name=str(values["name"]),
        values=scores,
        weights=weights,
        subject=str(values["subject"]),
        requests=str(values["requests"]),
        exponential=bool(values["exponential"]),
    )


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the plain mean of independent estimates, as of accuracies of different tasks."""
    count = len(estimates)
    stderr = math.sqrt(sum(one.stderr**2 for one in estimates)) / count
    return Estimate(sum(one.value for one in estimates) / count, stderr)


def _stderr(influence: np.ndarray) -> float:
    count = len(influence)
    return float(influence.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond it there is no float64
