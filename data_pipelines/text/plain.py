"""The corpora's tasks without seqio, as on the workers of a Beam pipeline.

`sources.py` declares corpora and tasks; `tasks.py` makes the same tasks with seqio.
"""

from data_pipelines.text.native import NativeTask
from data_pipelines.text.sources import corpus_of, list_files, located, tasks_of
from data_pipelines.text.tokenizer import load_tokenizer
from prts_jax.errors import UserError
from prts_jax.paths import PathLike


def has_plain_task(name: str) -> bool:
    """Returns whether a corpus has a task of this name."""
    corpus = corpus_of(name)
    return corpus is not None and name in tasks_of(corpus)


def open_plain_task(
    name: str,
    split: str,
    directory: PathLike | None = None,
    tokenizer: PathLike | None = None,
    end_id: str = "",
) -> NativeTask:
    """Returns a corpus's task, equal to that of `tasks.open_task` for the same arguments.

    Raises:
      UserError: no corpus has such a task, or a missing folder or tokenizer.
    """
    corpus = corpus_of(name)
    if corpus is None or not has_plain_task(name):
        raise UserError(f"no task {name!r} without seqio")
    folder, model = located(corpus, directory, tokenizer)
    return NativeTask(
        name=name,
        split=split,
        files=tuple(list_files(folder, split)),
        sources=tuple(corpus.sets.values()),
        chosen=frozenset(corpus.sets[short_name] for short_name in tasks_of(corpus)[name]),
        tokenizer=load_tokenizer(model, end_id),
    )
