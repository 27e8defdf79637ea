"""Makes a corpus of real text in SlimPajama's form from the packages of Debian 12.

    apt-get download $(python -m tools.debian_corpus --packages)
    python -m tools.debian_corpus *.deb --output=debian
    python -m tools.debian_corpus *.deb --output=debian-small --set_megabytes=5

Four sets: documentation, reference works, source code and books. Reads the packages as archives
and never installs them. The same packages give the same bytes. Every text is free software in the
sense of the Debian Free Software Guidelines; each package's licence is in its `copyright` file.
"""

import argparse
import hashlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.text.sources import DEBIAN
from prts_jax.errors import UserError
from prts_jax.paths import as_path, check_output
from prts_jax.text_table import align
from tools.corpus_files import VALIDATION, Document, write_splits
from tools.debian_text import dictionary_documents, html_text, read_files

MEGABYTE = 10**6
# Documents below this size are menus and stubs; above it, generated tables.
SIZES = (200, MEGABYTE)
HELD_OUT = 0.01


@dataclass(frozen=True)
class Package:
    """A Debian package and what is read of it.

    Attributes:
      name: of the package, in Debian 12.
      kind: short name of the set.
      pattern: regular expression for the paths of the files.
    """

    name: str
    kind: str
    pattern: str


PACKAGES = (
    Package("git-doc", "documentation", r"\.txt$"),
    Package("libboost1.81-doc", "documentation", r"\.html$"),
    Package("libreoffice-help-en-us", "documentation", r"\.html$"),
    Package("linux-doc-6.1", "documentation", r"\.rst(\.txt|\.gz)?$"),
    Package(
        "openjdk-17-doc", "documentation", r"/java\.(base|desktop|net\.http|sql|xml)/.*\.html$"
    ),
    Package("perl-doc", "documentation", r"\.pod$"),
    Package("postgresql-doc-15", "documentation", r"\.html$"),
    Package("python-django-doc", "documentation", r"\.html$"),
    Package("python-pandas-doc", "documentation", r"\.rst\.txt$"),
    Package("python3.11-doc", "documentation", r"\.rst\.txt$"),
    Package("sqlite3-doc", "documentation", r"\.html$"),
    Package("vim-doc", "documentation", r"\.html$"),
    Package("dict-devil", "reference", r"\.dict\.dz$"),
    Package("dict-foldoc", "reference", r"\.dict\.dz$"),
    Package("dict-gcide", "reference", r"\.dict\.dz$"),
    Package("dict-jargon", "reference", r"\.dict\.dz$"),
    Package("dict-wn", "reference", r"\.dict\.dz$"),
    Package("golang-1.19-src", "code", r"\.(go|s)$"),
    Package("libboost1.81-doc", "code", r"\.[ch]pp$"),
    Package("libeigen3-dev", "code", r"/eigen3/.*\.h$"),
    Package("python3-django", "code", r"\.py$"),
    Package("python3-sympy", "code", r"\.py$"),
    Package("anarchism", "books", r"\.md(\.gz)?$"),
    Package("cfi-en", "books", r"\.html?$"),
    Package("debian-handbook", "books", r"/en-US/.*\.html$"),
    Package("debian-reference-en", "books", r"\.en\.html$"),
    Package("developers-reference", "books", r"\.txt(\.gz)?$"),
    Package("mh-book", "books", r"\.html?$"),
)


def main(argv: Sequence[str]) -> int:
    """Writes the corpus and prints its documents and bytes by set.

    Raises:
      UserError: a folder that cannot be written, or as `read_documents`.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="the packages' .deb files")
    parser.add_argument("--packages", action="store_true", help="print the packages, and stop")
    parser.add_argument("--output", help="folder for train/ and validation/")
    parser.add_argument(
        "--set_megabytes", type=float, default=float("inf"), help="limit of each set's text"
    )
    arguments = parser.parse_args(argv)
    if arguments.packages:
        print(*sorted({package.name for package in PACKAGES}))
        return 0
    if not arguments.output:
        parser.error("--output is missing: the folder for train/ and validation/")
    if not arguments.set_megabytes > 0:
        parser.error(f"--set_megabytes={arguments.set_megabytes}: give a number above 0")
    check_output(as_path(arguments.output) / VALIDATION, f"--output={arguments.output}")
    documents = read_documents(arguments.files)
    train, validation = split(documents, arguments.set_megabytes * MEGABYTE)
    write_splits(arguments.output, train, validation)
    print(*align([("set", "split", "documents", "MB"), *_rows(train, validation)], 2), sep="\n")
    return 0


def _rows(train: Sequence[Document], validation: Sequence[Document]) -> Iterator[tuple[str, ...]]:
    for name, documents in (("train", train), ("validation", validation)):
        for set_name in DEBIAN.sets.values():
            sizes = [len(d.text.encode()) for d in documents if d.set_name == set_name]
            yield set_name, name, f"{len(sizes):,}", f"{sum(sizes) / MEGABYTE:.1f}"


def read_documents(files: Sequence[str]) -> dict[str, Document]:
    """Returns every document of the packages, by the path of its file; equal texts count once.

    Args:
      files: one .deb file for each of `PACKAGES`, in any order, named as apt-get names them.

    Raises:
      UserError: a package is missing, or as `debian_text.read_files`.
    """
    by_name = {Path(file).name.partition("_")[0]: file for file in files}
    missing = sorted({p.name for p in PACKAGES} - set(by_name))
    if missing:
        raise UserError(f"no .deb file of {', '.join(missing)}: run apt-get download {missing[0]}")
    documents: dict[str, Document] = {}
    seen: set[bytes] = set()
    for package in PACKAGES:
        set_name = DEBIAN.sets[package.kind]
        for path, content in read_files(by_name[package.name], package.pattern):
            for number, text in enumerate(_texts(path, content)):
                digest = hashlib.sha256(text.encode()).digest()
                if SIZES[0] <= len(text) <= SIZES[1] and digest not in seen:
                    seen.add(digest)
                    documents[f"{package.name}{path}#{number}"] = Document(set_name, text)
    return documents


def _texts(path: str, content: bytes) -> Iterator[str]:
    if path.endswith(".dict.dz"):
        yield from dictionary_documents(content)
    elif re.search(r"\.html?$", path):
        yield html_text(content.decode("utf-8", "replace"))
    else:
        yield content.decode("utf-8", "replace")


def split(
    documents: dict[str, Document], set_bytes: float
) -> tuple[list[Document], list[Document]]:
    """Returns the training and the validation documents.

    A set's documents are ordered by the digest of their path: a random order that a further
    document does not change. The first `HELD_OUT` of a set's bytes are its validation text.

    Args:
      documents: as `read_documents`.
      set_bytes: limit of a set's text, both splits together.
    """
    by_set: dict[str, list[str]] = defaultdict(list)
    for path, document in documents.items():
        by_set[document.set_name].append(path)
    train, validation = [], []
    for paths in by_set.values():
        paths.sort(key=lambda path: hashlib.sha256(path.encode()).digest())
        whole = sum(len(documents[path].text.encode()) for path in paths)
        limit, size = min(whole, set_bytes), 0
        for path in paths:
            document = documents[path]
            (validation if size < limit * HELD_OUT else train).append(document)
            size += len(document.text.encode())
            if size >= limit:
                break
    return train, validation


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
