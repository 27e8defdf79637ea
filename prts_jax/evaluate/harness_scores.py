"""Scores of requests out of what lm-evaluation-harness logs of each of them."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prts_jax.evaluate.scores import Scores


def scores_of(
    task: str,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    version: object,
    shots: object,
) -> list[Scores]:
    """Returns the scores of a task's requests, in each metric whose mean they make up.

    Args:
      task: its name.
      results: "metric,filter" → value, as the harness prints it.
      samples: what it logged: a request's metrics, and digests of what was asked.
      version: of the task.
      shots: examples in each prompt.

    A metric that is no mean of its requests (F1 of a whole set, BLEU) is left out.
    """
    found = []
    for key, value in results.items():
        metric, _, name = key.partition(",")
        chosen = [s for s in samples if s["filter"] == name and metric in s]
        if not chosen or not isinstance(value, int | float):
            continue
        subject = json.dumps([task, key, version, shots])
        asked = [[s[part] for part in ("doc_hash", "prompt_hash", "target_hash")] for s in chosen]
        requests = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        made = _as_mean([s[metric] for s in chosen])
        for values, weights, exponential in made:
            scores = Scores(task, key, values, weights, subject, requests, exponential)
            # The harness's own sum decides which of the means it is.
            if math.isclose(scores.estimate.value, value, rel_tol=1e-9, abs_tol=1e-12):
                found.append(scores)
                break
    return found


def _as_mean(values: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Returns the means that a metric may be: values, weights, whether it is an exponential.

    Numbers are averaged (accuracies), or are log-likelihoods of a perplexity; pairs are
    (log-likelihood, words or bytes) of a perplexity by word or byte, or of bits a byte.
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
