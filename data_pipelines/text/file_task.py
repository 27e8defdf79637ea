"""The interface of a task that fills a token store, file by file."""

from collections.abc import Iterator, Sequence
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
