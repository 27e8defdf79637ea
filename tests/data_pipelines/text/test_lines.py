"""Lines of compressed and plain files, whole and cut off anywhere."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.text.lines import ENORMOUS, Damage, numbered_lines, pieces

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda content: content,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.compress,
}
ending = st.sampled_from(list(COMPRESS))
line = st.binary(max_size=30).map(lambda content: content.replace(b"\n", b""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@given(lines=st.lists(line), ending=ending, cut=st.integers(0, 1000))
def test_compression_and_frames_do_not_change_line_numbers(
    folder: Path, lines: list[bytes], ending: str, cut: int
):
    content = b"\n".join(lines)
    path = folder / f"whole{ending}"
    frames = [content[: cut % (len(content) + 1)], content[cut % (len(content) + 1) :]]
    path.write_bytes(b"".join(COMPRESS[ending](frame) for frame in frames))
    expected = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    assert list(numbered_lines(path, 1 << 20)) == expected


@given(ending=st.sampled_from([".jsonl.gz", ".jsonl.zst"]), share=st.floats(0, 1, exclude_max=True))
@example(ending=".jsonl.gz", share=0)
@example(ending=".jsonl.zst", share=0)
def test_a_truncated_file_yields_its_whole_lines_then_the_damage(
    folder: Path, ending: str, share: float
):
    # Powers compress badly, so that there is something to find before the cut.
    lines = [str(pow(3, number, 10**60 + 7)).encode() for number in range(2000)]
    whole = COMPRESS[ending](b"\n".join(lines))
    path = folder / f"cut{ending}"
    path.write_bytes(whole[: int(len(whole) * share)])
    *actual, (number, damage) = numbered_lines(path, 1 << 20)
    assert [content for _, content in actual] == lines[: len(actual)]
    assert (number, damage) == (len(actual) + 1, Damage("truncated_file"))


@pytest.mark.parametrize("ending", COMPRESS)
def test_lines_around_a_too_long_line_are_read(folder: Path, ending: str):
    path = folder / f"long{ending}"
    path.write_bytes(COMPRESS[ending](b"before\n" + b"x" * 300_000 + b"\nafter"))
    actual = [(1, b"before"), (2, ENORMOUS), (3, b"after")]
    assert list(numbered_lines(path, 200_000)) == actual


def test_highly_compressed_text_is_decompressed_in_parts(folder: Path):
    path, size = folder / "dense.txt.zst", 1 << 28
    path.write_bytes(zstandard.compress(bytes(size)))
    assert path.stat().st_size < size / 10_000
    sizes = [len(piece) for piece in pieces(path)]
    assert sum(sizes) == size
    assert max(sizes) <= size / 2


def test_frames_of_the_largest_window_and_skippable_ones_are_read(folder: Path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"pzst"  # as pzstd writes
    path = folder / "wide.jsonl.zst"
    frames = [skippable, wide.compress(b"one\n") + wide.flush(), skippable]
    path.write_bytes(b"".join([*frames, zstandard.compress(b"two\n"), skippable]))
    assert list(numbered_lines(path, 100)) == [(1, b"one"), (2, b"two")]
