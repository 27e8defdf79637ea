"""Corpora in SlimPajama's form: what sets they have and where their files lie.

A corpus is a folder of `.jsonl.zst` files, `train/chunk*/example_train_*` and
`validation/chunk*/example_holdout_*`; `rows.py` reads one.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prts_jax.errors import UserError

SPLIT_GLOBS = {
    "train": "train/chunk*/example_train_*.jsonl.zst",
    "validation": "validation/chunk*/example_holdout_*.jsonl.zst",
}


@dataclass(frozen=True)
class Corpus:
    """A family of files with named sets.

    Attributes:
      name: the seqio task over all of it; a set's task is `{name}_{short name}`.
      sets: short name → the name in a row's `meta.redpajama_set_name`. The order is the order of
        the source ids in every store, so it never changes.
    """

    name: str
    sets: Mapping[str, str]


SLIMPAJAMA = Corpus(
    name="slimpajama",
    sets={
        "commoncrawl": "RedPajamaCommonCrawl",
        "c4": "RedPajamaC4",
        "github": "RedPajamaGithub",
        "book": "RedPajamaBook",
        "arxiv": "RedPajamaArXiv",
        "wikipedia": "RedPajamaWikipedia",
        "stackexchange": "RedPajamaStackExchange",
    },
)
SHAKESPEARE = Corpus(
    name="shakespeare",
    sets={
        "comedies": "ShakespeareComedies",
        "histories": "ShakespeareHistories",
        "tragedies": "ShakespeareTragedies",
    },
)
CORPORA = (SLIMPAJAMA, SHAKESPEARE)
EMBEDDED_SHAKESPEARE = Path(__file__).parent / "shakespeare"


def list_files(directory: str | os.PathLike[str], split: str) -> list[str]:
    """Returns a split's files in the order of their numbers (chunk2 before chunk10).

    Raises:
      UserError: no such split or folder, or no file in it.
    """
    if split not in SPLIT_GLOBS:
        raise UserError(f"no split {split!r}: give one of {', '.join(SPLIT_GLOBS)}")
    files = [str(path) for path in Path(directory).glob(SPLIT_GLOBS[split])]
    if not files:
        raise UserError(
            f"no text found: {Path(directory) / SPLIT_GLOBS[split]}; give the folder that holds "
            "train/ and validation/"
        )
    return sorted(files, key=_by_number)


def _by_number(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]
