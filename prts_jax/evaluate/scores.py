"""Scores of requests, their means, and the standard errors of those.

Requests are taken as many independent draws from all possible ones (Miller, "Adding Error Bars to
Evals", arXiv 2411.00640). A score is r = Σy / Σw over n requests: w is 1 for accuracies; for losses
y is in nats and w counts tokens or words. Request i contributes u_i = n·(y_i - r·w_i) / Σw (times
exp(r) for a perplexity exp(r)), and the standard error is that of the mean of u: sd(u) / √n, with
n - 1 in sd. For accuracies this is what lm-evaluation-harness prints; for ratios it is the usual
linear approximation (Cochran, Sampling Techniques, on ratio estimators).

Two models with the same requests are compared by the differences of their u, request by request
(Miller's paired analysis), which cancels what makes a request hard for both. Otherwise variances
add up.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LOSS, BITS, ALL = "loss", "bits/byte", "all"
"""Groups of scores on tokens of no task, and the name of all their sources together."""

NORMAL_95 = 1.959964
"""Standard errors on either side of a mean that hold 95% of a normal distribution."""


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values with None for NaN and infinities, which JSON lacks."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of two, and its standard error, NaN for fewer than two requests."""

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
        """Returns value, stderr, low and high (of the 95% interval); None where unknown."""
        low, high = self.value - self.half_width, self.value + self.half_width
        values = {"value": self.value, "stderr": self.stderr, "low": low, "high": high}
        return finite(values)


@dataclass(frozen=True)
class Scores:
    """The scores of one model in one measure, request by request.

    Attributes:
      group: the task, or `LOSS` or `BITS`.
      name: the measure: a metric of the task, or a source of the tokens.
      values: float64 [requests], y above.
      weights: float64 [requests], w above.
      subject: identifies the measure; scores of different subjects are not compared.
      requests: identifies the requests; scores of the same requests are paired.
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
        """Returns this score minus another; None if they measure different things."""
        if self.subject != other.subject or self.exponential != other.exponential:
            return None
        value = self.estimate.value - other.estimate.value
        if self.pairs_with(other):
            return Estimate(value, _stderr(self._influence() - other._influence()))
        return Estimate(value, math.hypot(self.estimate.stderr, other.estimate.stderr))

    def pairs_with(self, other: "Scores") -> bool:
        """Whether both have the same requests in the same order."""
        return self.requests == other.requests and np.array_equal(self.weights, other.weights)

    def _influence(self) -> np.ndarray:
        ratio = self.values.sum() / self.weights.sum()
        contributions = (self.values - ratio * self.weights) / self.weights.mean()
        return contributions * _exp(float(ratio)) if self.exponential else contributions

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON holds them; weights that are all 1 are left out."""
        lists = {"values": self.values.tolist()}
        if (self.weights != 1).any():
            lists["weights"] = self.weights.tolist()
        names = ("group", "name", "subject", "requests", "exponential")
        return {name: getattr(self, name) for name in names} | lists


def from_json(values: dict[str, Any]) -> Scores:
    """Inverts `Scores.to_json`.

    Raises:
      ValueError, KeyError, TypeError: the values are no scores.
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


def from_harness(
    task: str,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    version: object,
    shots: object,
) -> list[Scores]:
    """Returns a task's scores in each metric that is a mean over the requests.

    `results` has "metric,filter" → value, as the harness prints it, and `samples` its log of the
    requests. Other metrics (F1 of a whole set, BLEU) are left out.
    """
    by_metric: list[Scores] = []
    for key, value in results.items():
        metric, _, name = key.partition(",")
        chosen = [s for s in samples if s["filter"] == name and metric in s]
        if not chosen or not isinstance(value, int | float):
            continue
        subject = json.dumps([task, key, version, shots])
        asked = [[s[part] for part in ("doc_hash", "prompt_hash", "target_hash")] for s in chosen]
        requests = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        for values, weights, exponential in _possible_means([s[metric] for s in chosen]):
            scores = Scores(task, key, values, weights, subject, requests, exponential)
            # The harness's own value tells which of the means the metric is.
            if math.isclose(scores.estimate.value, value, rel_tol=1e-9, abs_tol=1e-12):
                by_metric.append(scores)
                break
    return by_metric


def _possible_means(values: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Returns the means that a metric may be: values, weights, whether it is an exponential.

    Numbers are averaged (accuracies), or are log-likelihoods of a perplexity. Pairs are
    (log-likelihood, words or bytes) of a perplexity per word or byte, or of bits per byte.
    """
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return []
    if array.ndim == 1:
        ones = np.ones(len(array))
        return [(array, ones, False), (-array, ones, True)]
    if array.ndim == 2 and array.shape[1] == 2 and array[:, 1].sum() > 0:
        losses, counts = -array[:, 0], array[:, 1]
        return [(losses, counts, True), (losses / math.log(2), counts, False)]
    return []


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Returns the mean of independent estimates, such as accuracies of different tasks."""
    count = len(estimates)
    stderr = math.sqrt(sum(one.stderr**2 for one in estimates)) / count
    return Estimate(sum(one.value for one in estimates) / count, stderr)


def _stderr(influence: np.ndarray) -> float:
    count = len(influence)
    return float(influence.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # exp(710) overflows float64
