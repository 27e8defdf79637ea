"""One split of a seqio task, read file by file through TensorFlow."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import seqio

from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Fault
from data_pipelines.text.tokenizer import Tokenizer, load_tokenizer
from prts_jax.errors import UserError, first_line

Recipe = tuple[Callable[..., Any], tuple[Any, ...]]


class SeqioFileTask:
    """One split of any seqio task as `FileTask`: its documents file by file, in order.

    The task's source must list its files, as sources over files and TFDS do, and its `targets` must
    come from a SentencePiece vocabulary. The documents of a user's task belong to one source, with
    the task's name.
    """

    def __init__(self, name: str, split: str, task: seqio.Task, recipe: Recipe | None = None):
        """Takes a registered task, and the call that opens it in another process."""
        vocabulary = _vocabulary(name, task)
        if split not in task.splits:
            raise UserError(f"task {name} has no split {split}: it has {', '.join(task.splits)}")
        self.name = name
        self.split = split
        self.sources = tuple(getattr(task.source, "sources", (task.name,)))
        self.files = [os.fspath(file) for file in task.source.list_shards(split)]
        self.tokenizer: Tokenizer = load_tokenizer(vocabulary.sentencepiece_model_file)
        self._task = task
        self._recipe = recipe

    def __reduce__(self) -> Recipe:
        if self._recipe is None:
            raise UserError(f"task {self.name} was not opened by its name: cache it in one process")
        return self._recipe

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents and faults, in order.

        Text lengths are known if the task keeps the text as `targets_pretokenized`.

        Raises:
          UserError: a file of a corpus cannot be read.
        """
        faults: list[Fault] = getattr(self._task.source, "faults", [])
        faults.clear()
        count = 0
        try:
            dataset = self._task.get_dataset(
                split=self.split,
                shuffle=False,
                shard_info=seqio.ShardInfo(index=index, num_shards=len(self.files)),
                try_in_mem_cache=False,
            )
            for example in dataset.as_numpy_iterator():
                while faults:
                    yield faults.pop(0)
                encoded = _encoded(example, count + 1)
                count += 1
                yield encoded
        except Exception as error:
            if failure := getattr(self._task.source, "failure", None):
                raise failure from None
            reason = re.sub(r"\{\{.*?\}\}", "", first_line(error)).strip()
            raise UserError(
                f"task {self.name}: {self.files[index]}, document {count + 1}: "
                f"{type(error).__name__}: {reason}; fix the task's preprocessors"
            ) from error
        yield from faults


def _encoded(example: Mapping[str, Any], number: int) -> Encoded:
    """Returns the document of an example, the file's `number`-th."""
    tokens, text = example.get("targets"), example.get("targets_pretokenized")
    if tokens is None or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise ValueError("an example has no targets of token ids")
    source, row = int(example.get("source_ids", 0)), int(example.get("row", number))
    return Encoded(tokens, source, None if text is None else len(text), row=row)


def _vocabulary(name: str, task: seqio.Task) -> seqio.SentencePieceVocabulary:
    """Returns the vocabulary of a task's targets."""
    feature = task.output_features.get("targets")
    if feature is None:
        raise UserError(f"task {name} has no output feature 'targets': name its tokens so")
    if not isinstance(feature.vocabulary, seqio.SentencePieceVocabulary):
        raise UserError(
            f"task {name}: its targets have a {type(feature.vocabulary).__name__}; a store needs "
            "a seqio.SentencePieceVocabulary"
        )
    return feature.vocabulary
