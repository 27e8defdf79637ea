"""The interface of a task that fills a token store, file by file, and mixtures of tasks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Fault
from data_pipelines.text.tokenizer import Tokenizer


class FileTask(Protocol):
    """A task: input files in, documents of token ids out; picklable for several processes."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def split(self) -> str:
        """The split's name."""

    @property
    def files(self) -> Sequence[str]:
        """The input files, in order."""

    @property
    def sources(self) -> Sequence[str]:
        """The names of the sets; a source id is an index into them."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the token ids."""

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents and faults, in order."""


@dataclass(frozen=True)
class MixedTask:
    """A mixture of tasks of one tokenizer as `FileTask`; a document's set is its task."""

    name: str
    split: str
    parts: tuple[FileTask, ...]
    shares: tuple[float, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(part.name for part in self.parts)

    @property
    def files(self) -> tuple[str, ...]:
        """The files of all tasks, in the order of the tasks."""
        return tuple(file for part in self.parts for file in part.files)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all tasks."""
        return self.parts[0].tokenizer

    @property
    def mixture(self) -> str:
        """The shares as `config.data.mixture` takes them."""
        return ",".join(
            f"{name}={share:.6g}" for name, share in zip(self.sources, self.shares, strict=True)
        )

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents and faults, in order."""
        for source, part in enumerate(self.parts):
            if index < len(part.files):
                for row in part.documents(index):
                    yield row if isinstance(row, Fault) else row._replace(source=source)
                return
            index -= len(part.files)
