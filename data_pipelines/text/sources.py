"""Corpora in SlimPajama's form: their sets, tasks and files.

A corpus is a folder of `.jsonl.zst` files, `train/chunk*/example_train_*` and
`validation/chunk*/example_holdout_*`; `rows.py` reads a file.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.text.inputs import glob_files
from prts_jax.errors import UserError
from prts_jax.paths import PathLike, as_path

SPLIT_GLOBS = {
    "train": "train/chunk*/example_train_*.jsonl.zst",
    "validation": "validation/chunk*/example_holdout_*.jsonl.zst",
}


@dataclass(frozen=True)
class Corpus:
    """A family of files with named sets.

    Attributes:
      name: the seqio task of the whole corpus; a set's task is `{name}_{short name}`.
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
# Text of Debian's packages, as tools/debian_corpus.py writes it.
DEBIAN = Corpus(
    name="debian",
    sets={
        "documentation": "DebianDocumentation",
        "reference": "DebianReference",
        "code": "DebianCode",
        "books": "DebianBooks",
    },
)
CORPORA = (SLIMPAJAMA, SHAKESPEARE, DEBIAN)
EMBEDDED_SHAKESPEARE = Path(__file__).parents[1] / "shakespeare"
HOMES = {
    SHAKESPEARE.name: EMBEDDED_SHAKESPEARE,
    SLIMPAJAMA.name: Path("slimpajama"),
    DEBIAN.name: Path("debian"),
}
TOKENIZER = "tokenizer.model"


def tasks_of(corpus: Corpus) -> dict[str, tuple[str, ...]]:
    """Returns the short names of each task's sets, by the task's name."""
    everything = tuple(corpus.sets)
    tasks = {corpus.name: everything, f"{corpus.name}_natural": everything}
    tasks |= {f"{corpus.name}_{short_name}": (short_name,) for short_name in everything}
    if corpus is SLIMPAJAMA:
        paper = tuple(name for name in everything if name != "github")
        tasks |= {"slimpajama_all_but_github": paper, "slimpajama_no_github": paper}
    return tasks


def corpus_of(task: str) -> Corpus | None:
    """Returns the corpus of a task, by the prefix of the task's name."""
    for corpus in CORPORA:
        if task == corpus.name or task.startswith(f"{corpus.name}_"):
            return corpus
    return None


def located(
    corpus: Corpus, directory: PathLike | None, tokenizer: PathLike | None
) -> tuple[str, str]:
    """Returns a corpus's folder, by default its home, and its SentencePiece model.

    By default the model is the one in the folder, else in the home.
    """
    home = HOMES[corpus.name]
    folder = os.fspath(directory or home)
    beside, shipped = as_path(folder) / TOKENIZER, home / TOKENIZER
    if tokenizer is None:
        tokenizer = shipped if shipped.exists() and not beside.exists() else beside
    return folder, os.fspath(tokenizer)


def list_files(directory: PathLike, split: str) -> list[str]:
    """Returns a split's files in numeric order (chunk2 before chunk10).

    Raises:
      UserError: no such split or folder, or no file in it.
    """
    if split not in SPLIT_GLOBS:
        raise UserError(f"no split {split!r}: give one of {', '.join(SPLIT_GLOBS)}")
    files = glob_files(directory, SPLIT_GLOBS[split])
    if not files:
        raise UserError(
            f"no text found: {os.path.join(directory, SPLIT_GLOBS[split])}; give the folder that "
            "holds train/ and validation/"
        )
    return files
