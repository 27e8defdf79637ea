"""The corpora's tasks without seqio, as on the workers of a Beam pipeline.

`sources.py` declares corpora and tasks; `tasks.py` makes the same tasks with seqio.
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
    """Returns a corpus's task, equal to that of `tasks.open_task`.

    Args:
      name: the task's name.
      split: `train` or `validation`.
      directory: the corpus's folder; by default its home.
      tokenizer: a SentencePiece model; by default the one in the folder, else in its home.

    Raises:
      UserError: no corpus has such a task, or a missing folder or tokenizer.
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
