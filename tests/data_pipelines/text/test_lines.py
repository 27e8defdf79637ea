"""Lines of compressed and plain files, whole and cut off anywhere."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipelines.text.lines import ENORMOUS, Damage, chunks, numbered_lines

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda content: content,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zstandard.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.bz2": bz2.compress,
}
COMPRESSED = [name for name in COMPRESS if name != ".jsonl"]
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
    expected: list[tuple[int, bytes | Damage]] = [
        (number, line) for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not content and ending == ".jsonl":
        expected = [(1, Damage("truncated_file"))]
    assert list(numbered_lines(path, 1 << 20)) == expected


@given(ending=st.sampled_from(COMPRESSED), share=st.floats(0, 1, exclude_max=True))
@example(ending=".jsonl.gz", share=0)
@example(ending=".jsonl.zst", share=0)
def test_a_truncated_file_yields_the_lines_of_its_whole_frames_then_the_damage(
    folder: Path, ending: str, share: float
):
    # Powers compress badly, so that every frame has some length.
    lines = [str(pow(3, number, 10**60 + 7)).encode() for number in range(900)]
    frames = [COMPRESS[ending](b"\n".join([*lines[n : n + 300], b""])) for n in (0, 300, 600)]
    size = int(len(b"".join(frames)) * share)
    path = folder / f"cut{ending}"
    path.write_bytes(b"".join(frames)[:size])
    ends = [0, len(frames[0]), len(frames[0]) + len(frames[1])]
    whole = sum(end <= size for end in ends) - 1
    *actual, (number, damage) = numbered_lines(path, 1 << 20)
    if size in ends[1:]:  # the file ends with a frame, which looks whole
        assert [line for _, line in [*actual, (number, damage)]] == lines[: whole * 300]
        return
    assert [line for _, line in actual] == lines[: whole * 300]
    assert (number, damage) == (whole * 300 + 1, Damage("truncated_file", size - ends[whole]))


def with_checksum(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


@pytest.mark.parametrize("held", [0, 1 << 25])
@pytest.mark.parametrize("ending", COMPRESSED)
def test_no_flipped_bit_leaves_an_altered_line(
    folder: Path, ending: str, held: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("data_pipelines.text.lines.HELD_BYTES", held)
    generator = random.Random(ending)
    lines = [json.dumps({"text": generator.randbytes(40).hex()}).encode() for _ in range(120)]
    compress = {**COMPRESS, ".jsonl.zst": with_checksum}[ending]
    frames = [compress(b"\n".join([*lines[n : n + 40], b""])) for n in (0, 40, 80)]
    whole = b"".join(frames)
    path = folder / f"flipped{ending}"
    for _ in range(150):
        bit = generator.randrange(8 * len(whole))
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        *actual, (number, damage) = numbered_lines(path, 1 << 20)
        assert [line for _, line in actual] == lines[: len(actual)]
        before = sum(bit // 8 >= len(b"".join(frames[: n + 1])) for n in range(3))
        if isinstance(damage, Damage):
            assert (len(actual), number) == (40 * before, 40 * before + 1)
            assert damage.lost_bytes == len(b"".join(frames[before:]))
        else:  # bytes that nobody reads, like the time in a gzip header
            assert [line for _, line in actual] == lines[:-1]
            assert damage == lines[-1]


def test_zero_bytes_may_pad_compressed_files(folder: Path):
    for ending in (".jsonl.gz", ".jsonl.xz"):
        path = folder / f"padded{ending}"
        path.write_bytes(
            COMPRESS[ending](b"one\n") + bytes(8) + COMPRESS[ending](b"two") + bytes(4)
        )
        assert list(numbered_lines(path, 100)) == [(1, b"one"), (2, b"two")]


def test_extensions_of_compression_ignore_case(folder: Path):
    path = folder / "UPPER.JSONL.GZ"
    path.write_bytes(gzip.compress(b"one"))
    assert list(numbered_lines(path, 100)) == [(1, b"one")]


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
    sizes = [len(piece) for piece in chunks(path)]
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
