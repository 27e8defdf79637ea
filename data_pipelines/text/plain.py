"""The tasks of our corpora where seqio is not installed, as on the workers of a Beam pipeline.

Corpora and their tasks are declared once, in `sources.py`: `tasks.py` makes seqio tasks of them,
and this the same tasks without it.
"""

import os

from data_pipelines.text.native import NativeTask
from data_pipelines.text.sources import corpus_of, list_files, located, tasks_of
from data_pipelines.text.tokenizer import load_tokenizer
from prts_jax.errors import UserError


def open_plain_task(
    name: str,
    split: str,
    directory: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> NativeTask:
    """Returns a task of a corpus, equal to what `tasks.open_task` gives for it.

    Args:
      name: of the task.
      split: `train` or `validation`.
      directory: as in `tasks.open_task`, as is `tokenizer`.
      tokenizer: see there.

    Raises:
      UserError: no corpus of ours has such a task, or a missing folder or tokenizer.
    """
    corpus = corpus_of(name)
    chosen = None if corpus is None else tasks_of(corpus).get(name)
    if corpus is None or chosen is None:
        raise UserError(
            f"no task {name!r} without seqio: install it with `pip install prts_jax[data]`"
        )
    folder, model = located(corpus, directory, tokenizer)
    return NativeTask(
        name=name,
        split=split,
        files=tuple(list_files(folder, split)),
        sources=tuple(corpus.sets.values()),
        chosen=frozenset(corpus.sets[short_name] for short_name in chosen),
        tokenizer=load_tokenizer(model),
    )
