"""Results of an evaluation in a file: the figures, and every request's score to compare them by."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from prts_jax.errors import UserError
from prts_jax.evaluate import scores as request_scores
from prts_jax.evaluate.scores import Scores
from prts_jax.paths import as_path, write_atomically

FORMAT = "prts-eval-1"


@dataclass(frozen=True)
class Results:
    """What one checkpoint scored.

    Attributes:
      label: what it is called in tables.
      checkpoint: its path, as it was named.
      found: what `prts eval --json` prints.
      scores: of the requests.
    """

    label: str
    checkpoint: str
    found: dict[str, Any]
    scores: tuple[Scores, ...] = field(repr=False)


def save(results: Results, path: str) -> None:
    """Writes results to a new file, whole or not at all.

    Raises:
      UserError: there is a file already, or it cannot be written.
    """
    values = {
        "format": FORMAT,
        "checkpoint": results.checkpoint,
        "results": results.found,
        "scores": [scores.to_json() for scores in results.scores],
    }
    check_new(path)
    try:
        as_path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(values) + "\n")
    except OSError as error:
        raise UserError(f"--save={path}: cannot be written ({error}); name another file") from error


def check_new(path: str) -> None:
    """Refuses a file that exists, before anything is computed for it.

    Raises:
      UserError: it is there.
    """
    if as_path(path).exists():
        raise UserError(f"--save={path}: exists; results are not overwritten, name another file")


def load(argument: str) -> Results:
    """Reads saved results.

    Args:
      argument: `FILE`, called by its name without ending, or `label=FILE`.

    Raises:
      UserError: no such file, or one that `save` did not write.
    """
    label, equals, path = argument.partition("=")
    if not equals or as_path(argument).exists():
        label, path = PurePath(argument).stem, argument
    try:
        values = json.loads(as_path(path).read_text())
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, not {FORMAT!r}")
        made = tuple(request_scores.from_json(scores) for scores in values["scores"])
        return Results(label, str(values["checkpoint"]), dict(values["results"]), made)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name a file of `prts eval --save`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: holds no results ({error}); name a file that `prts eval --save` wrote"
        ) from error


def named_apart(results: Sequence[Results], arguments: Sequence[str]) -> list[Results]:
    """Returns results whose labels differ: those that share one are called as they were named.

    Args:
      results: read or measured.
      arguments: how the command line names each.

    Raises:
      UserError: two are named the same.
    """
    labels = [one.label for one in results]
    for argument in arguments:
        if arguments.count(argument) > 1:
            raise UserError(f"{argument}: is named twice; name different ones, or one alone")
    return [
        dataclasses.replace(one, label=argument) if labels.count(one.label) > 1 else one
        for one, argument in zip(results, arguments, strict=True)
    ]
