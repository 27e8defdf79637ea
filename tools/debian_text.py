"""Reads the text of Debian packages: files of a .deb archive, HTML as text, dictionaries."""

import gzip
import io
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from prts_jax.errors import UserError

UNPACKING = (lzma.LZMAError, zlib.error)
# Neighbouring entries of a dictionary share a document of at least this many characters.
DICTIONARY_DOCUMENT = 4000
SKIPPED = {"script", "noscript", "style", "nav", "header", "footer", "head", "svg"}
# fmt: off
BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "h1",
    "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "ol", "p", "pre", "section", "table", "td",
    "th", "tr", "ul",
}
# fmt: on


def read_files(package: str | Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yields the path and content of a package's regular files that a pattern matches.

    Args:
      package: a .deb file (deb(5)): an ar archive with a packed `data.tar`.
      pattern: regular expression, searched in a file's path (`/usr/…`).

    Yields:
      Path and content, unpacked where the path ends with `.gz` or `.dz`, in the archive's order.

    Raises:
      UserError: the file cannot be read, or is no Debian package.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_data_archive(Path(package).read_bytes()))) as archive:
            for member in archive:
                path = member.name.removeprefix(".")
                if member.isreg() and re.search(pattern, path):
                    content = archive.extractfile(member).read()  # type: ignore[union-attr]
                    packed = path.endswith((".gz", ".dz"))
                    yield path, gzip.decompress(content) if packed else content
    except (OSError, EOFError, ValueError, tarfile.TarError, *UNPACKING) as error:
        raise UserError(f"cannot read {package}: {error}; give a .deb file") from error


def _data_archive(package: bytes) -> bytes:
    """Returns the tar archive of the installed files.

    An ar member is a header of 60 bytes (16 of name, 10 of size at 48) and its data, padded to an
    even length.
    """
    at = len(b"!<arch>\n")
    while at + 60 <= len(package):
        name = package[at : at + 16].decode("ascii").strip(" /")
        size = int(package[at + 48 : at + 58])
        data = package[at + 60 : at + 60 + size]
        if name == "data.tar.xz":
            return lzma.decompress(data)
        if name == "data.tar.gz":
            return gzip.decompress(data)
        at += 60 + size + size % 2
    raise ValueError("no data.tar in it")


def dictionary_documents(content: bytes) -> Iterator[str]:
    """Yields a dictd database's text in runs of neighbouring entries.

    An entry begins at a line without indentation, the headword.
    """
    document: list[str] = []
    size = 0
    for line in content.decode("utf-8", "replace").splitlines(keepends=True):
        if size >= DICTIONARY_DOCUMENT and line[:1].strip():
            yield "".join(document)
            document, size = [], 0
        document.append(line)
        size += len(line)
    if document:
        yield "".join(document)


def html_text(page: str) -> str:
    """Returns a page's text: one line a block, code as it is, no menus, scripts or headers."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = (line.rstrip() for line in "".join(parser.parts).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipped = 0
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skipped += tag in SKIPPED
        self.preformatted += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self.skipped = max(0, self.skipped - (tag in SKIPPED))
        self.preformatted = max(0, self.preformatted - (tag == "pre"))
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self.skipped:
            return
        text = data if self.preformatted else re.sub(r"\s+", " ", data)
        at_line_start = not self.parts or self.parts[-1].endswith("\n")
        self.parts.append(text if self.preformatted or not at_line_start else text.lstrip())

    def _break(self, tag: str) -> None:
        if tag in BLOCKS and not self.skipped and self.parts and not self.preformatted:
            if not self.parts[-1].endswith("\n"):
                self.parts.append("\n")
            if tag[0] in "hp" and not self.parts[-1].endswith("\n\n"):
                self.parts.append("\n")
