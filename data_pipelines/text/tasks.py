"""The seqio tasks and mixtures; with `seqio_file_task` alone it imports seqio and TensorFlow.

Each corpus has the tasks `{corpus}` (everything, in file order) and `{corpus}_{set}`, and the
mixture `{corpus}_natural`. SlimPajama also has `slimpajama_no_github` (the paper's data) and
`slimpajama_tfds`, over the data set of TensorFlow Datasets (`slimpajama/`). A mixture is one task
over its sets in file order: one pass over the input, with the shares of the text itself. `register`
points a corpus at another folder.

A task yields for each document `targets` (its pieces and the end-of-text id, int32 [n]) and
`source_ids` (its set, int32 []). `open_task` opens a task for caching: without TensorFlow if it is
text → SentencePiece → end of text, otherwise through seqio.
"""

import difflib
import functools
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_pipelines.text.file_task import MixedTask
from data_pipelines.text.native import NativeTask
from data_pipelines.text.rows import Fault, read_rows
from data_pipelines.text.sources import (
    CORPORA,
    HOMES,
    SLIMPAJAMA,
    SPLIT_GLOBS,
    TOKENIZER,
    Corpus,
    corpus_of,
    list_files,
    located,
    tasks_of,
)
from data_pipelines.text.tokenizer import load_tokenizer
from prts_jax.errors import UserError, first_line
from prts_jax.paths import PathLike


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Discards what native code writes to standard error; exceptions pass.

    TensorFlow writes about its build during its import, before any log level applies, and
    SentencePiece about each model.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _silent_libraries():
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # TensorFlow would take all of an accelerator's memory, which tokenizing does not use.
    tf.config.set_visible_devices([], "GPU")

    from data_pipelines.text.seqio_file_task import SeqioFileTask
# seqio warns of every vocabulary without a padding id, like Llama's.
logging.getLogger("absl").setLevel(logging.ERROR)


class CorpusSource(seqio.FileDataSource):
    """Documents of chosen sets of a corpus, as {"targets": text, "source_ids": id}.

    Attributes:
      sources: all set names of the corpus, so that a source id means the same in every task.
      chosen: names of the sets to yield.
      faults: faults of the last reading, in order.
      failure: the error that ended the last reading; TensorFlow passes on only its text.
    """

    def __init__(self, corpus: Corpus, directory: PathLike, sets: Sequence[str]):
        self.sources = tuple(corpus.sets.values())
        self.chosen = frozenset(corpus.sets[short_name] for short_name in sets)
        self.faults: list[Fault] = []
        self.failure: UserError | None = None
        self._directory = directory
        super().__init__(self._dataset, split_to_filepattern=SPLIT_GLOBS)

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the split's files in order."""
        return list_files(self._directory, split)

    def _dataset(self, file: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_generator(
            self._rows,
            args=(file,),
            output_signature={
                "targets": tf.TensorSpec((), tf.string),
                "source_ids": tf.TensorSpec((), tf.int32),
                "row": tf.TensorSpec((), tf.int64),
            },
        )

    def _rows(self, file: bytes) -> Iterator[dict[str, object]]:
        try:
            for row in read_rows(file.decode(), self.sources):
                if isinstance(row, Fault):
                    self.faults.append(row)
                elif row.set_name in self.chosen:
                    yield {
                        "targets": row.text.encode(),
                        "source_ids": self.sources.index(row.set_name),
                        "row": row.row,
                    }
        except UserError as error:
            self.failure = error
            raise


class TfdsCorpusSource(seqio.TfdsDataSource):
    """A corpus in TensorFlow Datasets, whose labels are source ids."""

    def __init__(self, corpus: Corpus, directory: PathLike):
        self.sources = tuple(corpus.sets.values())
        super().__init__(TFDS_NAME, tfds_data_dir=os.fspath(directory), splits=list(SPLIT_GLOBS))

    def list_shards(self, split: str) -> Sequence[str]:
        """Returns the split's files in order.

        Raises:
          UserError: the data set is missing.
        """
        try:
            files: Sequence[str] = super().list_shards(split)
        except (tfds.core.DatasetNotFoundError, OSError, ValueError) as error:
            raise UserError(
                f"no data set {TFDS_NAME}: {first_line(error)}; make it with `tfds build` and "
                "give its --data_dir as --input"
            ) from error
        return files


def _rows_of_tfds(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(
        lambda row: {
            "targets": row["text"],
            "source_ids": tf.cast(row["redpajama_set_name"], tf.int32),
        }
    )


def register(corpus: Corpus, directory: PathLike, tokenizer: PathLike) -> None:
    """Registers a corpus's tasks and mixtures, replacing earlier ones.

    The tokenizer, a SentencePiece model, is read when a task is first used.
    """
    _registered[corpus.name] = (directory, tokenizer)
    tasks = tasks_of(corpus)
    mixtures = {name: task for name, task in MIXTURES.items() if name in tasks}

    vocabulary = LoadedOnce(os.fspath(tokenizer))
    for name, sets in tasks.items():
        if name in mixtures:
            continue
        seqio.TaskRegistry.remove(name)
        seqio.TaskRegistry.add(
            name,
            source=CorpusSource(corpus, directory, sets),
            preprocessors=[_tokenize, seqio.preprocessors.append_eos],
            output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
        )
    if corpus is SLIMPAJAMA:
        seqio.TaskRegistry.remove("slimpajama_tfds")
        seqio.TaskRegistry.add(
            "slimpajama_tfds",
            source=TfdsCorpusSource(corpus, directory),
            preprocessors=[
                _rows_of_tfds,
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos,
            ],
            output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
        )
    for name, task in mixtures.items():
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, [(task, 1.0)])


def _tokenize(
    dataset: tf.data.Dataset, output_features: seqio.preprocessors.OutputFeaturesType
) -> tf.data.Dataset:
    return seqio.preprocessors.tokenize(dataset, output_features, copy_pretokenized=False)


class LoadedOnce(seqio.SentencePieceVocabulary):
    """A vocabulary that keeps its tf.data tokenizer; seqio's builds one for every data set.

    Built outside the traced function, one tokenizer serves all files, at twice the speed.
    """

    @functools.cached_property
    def tf_tokenizer(self) -> Any:
        """The `tensorflow_text.SentencepieceTokenizer` of this model."""
        with tf.init_scope(), _silent_libraries():
            return super().tf_tokenizer


def native_task(name: str, split: str, task: seqio.Task) -> NativeTask | None:
    """Returns the task without TensorFlow, or None if it does more than tokenize."""
    source, feature = task.source, task.output_features.get("targets")
    if not isinstance(source, CorpusSource) or feature is None or len(task.output_features) > 1:
        return None
    vocabulary = feature.vocabulary
    if type(vocabulary) not in (seqio.SentencePieceVocabulary, LoadedOnce):
        return None
    tokenizer = load_tokenizer(vocabulary.sentencepiece_model_file)
    # seqio may write extra ids and another normalisation into its model.
    plain = vocabulary.sp_model == tokenizer.model and not vocabulary._use_fast_tokenizer
    steps = tuple(task.preprocessors)
    tokenizes = steps in [(step, seqio.preprocessors.append_eos) for step in TOKENIZING]
    if not (plain and tokenizes and feature.add_eos):
        return None
    return NativeTask(
        name=name,
        split=split,
        files=tuple(source.list_shards(split)),
        sources=source.sources,
        chosen=source.chosen,
        tokenizer=tokenizer,
    )


TOKENIZING = (_tokenize, seqio.preprocessors.tokenize)


def open_task(
    name: str,
    split: str,
    directory: PathLike | None = None,
    tokenizer: PathLike | None = None,
    modules: Sequence[str] = (),
) -> NativeTask | SeqioFileTask | MixedTask:
    """Opens a registered task or mixture for caching.

    Args:
      name: name in seqio's registries.
      split: `train` or `validation`.
      directory: the corpus's folder; by default the embedded corpus, or `./slimpajama`.
      tokenizer: a SentencePiece model; by default `tokenizer.model` in the corpus's folder, and
        for Shakespeare else the embedded one.
      modules: Python modules that register tasks, imported first.

    Raises:
      UserError: an unknown name (the message names the nearest), a mixture with several
        vocabularies, or a missing folder, tokenizer or module.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UserError(
                f"cannot import {module}: {type(error).__name__}: {first_line(error)}; give a "
                "module on PYTHONPATH that imports without an error"
            ) from error
    with _pointed_at(name, directory, tokenizer):
        provider = _find(name)
        paths = (directory, tokenizer, tuple(modules))
        if not isinstance(provider, seqio.Mixture):
            return _file_task(name, split, provider, (name, split, *paths))
        tasks = provider.tasks
        if len(tasks) == 1:
            return _file_task(name, split, tasks[0], (name, split, *paths))
        parts = tuple(_file_task(t.name, split, t, (t.name, split, *paths)) for t in tasks)
        rates = [provider.get_rate(task) for task in tasks]
    if len({part.tokenizer.sha256 for part in parts}) > 1:
        raise UserError(f"mixture {name}: its tasks have several vocabularies; a store has one")
    if not sum(rates) > 0:
        raise UserError(f"mixture {name}: its rates are {rates}; give rates above 0")
    return MixedTask(name, split, parts, tuple(rate / sum(rates) for rate in rates))


def _file_task(
    name: str, split: str, task: seqio.Task, arguments: tuple[Any, ...]
) -> NativeTask | SeqioFileTask:
    recipe = (open_task, arguments)
    return native_task(name, split, task) or SeqioFileTask(name, split, task, recipe)


def _find(name: str) -> seqio.Task | seqio.Mixture:
    try:
        return seqio.get_mixture_or_task(name)
    except ValueError as error:
        known = sorted([*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()])
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise UserError(f"no task {name!r}: the nearest is {nearest!r}") from error


@contextmanager
def _pointed_at(
    name: str, directory: PathLike | None, tokenizer: PathLike | None
) -> Iterator[None]:
    """Registers a task's corpus with another folder and tokenizer until the end of the block."""
    if directory is None and tokenizer is None:
        yield
        return
    _find(name)
    corpus = corpus_of(name)
    if corpus is None:
        raise UserError(f"task {name!r} has its own input and tokenizer: leave both out")
    previous = _registered[corpus.name]
    register(corpus, *located(corpus, directory, tokenizer))
    try:
        yield
    finally:
        register(corpus, *previous)


_registered: dict[str, tuple[PathLike, PathLike]] = {}
"""Corpus → its folder and tokenizer in seqio's global registry."""

TFDS_NAME = "slimpajama:1.0.0"
MIXTURES = {
    "debian_natural": "debian",
    "shakespeare_natural": "shakespeare",
    "slimpajama_natural": "slimpajama",
    "slimpajama_no_github": "slimpajama_all_but_github",
}
"""Mixture → its one task; the shares of the sets are those of the text."""

for _corpus in CORPORA:
    register(_corpus, HOMES[_corpus.name], HOMES[_corpus.name] / TOKENIZER)
