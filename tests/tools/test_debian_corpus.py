"""The corpus of Debian packages: archives, HTML, dictionaries, sets and splits."""

import gzip
import io
import json
import lzma
import tarfile

import pytest
import zstandard

from data_pipelines.text.sources import DEBIAN
from prts_jax.errors import UserError
from tools import debian_corpus, debian_text


def write_package(path, files, packer=lzma.compress, suffix="xz"):
    """Writes a .deb file as deb(5) describes it."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f".{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": b"odd",
        f"data.tar.{suffix}": packer(data.getvalue()),
    }
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return str(path)


@pytest.mark.parametrize(
    ("packer", "suffix"),
    [(lzma.compress, "xz"), (gzip.compress, "gz")],
)
def test_matching_files_of_a_package_are_read_and_unpacked(tmp_path, packer, suffix):
    files = {"/a.txt": b"text", "/b.txt.gz": gzip.compress(b"packed"), "/c.png": b"picture"}
    package = write_package(tmp_path / "p_1_all.deb", files, packer, suffix)
    read = list(debian_text.read_files(package, r"\.txt(\.gz)?$"))
    assert read == [("/a.txt", b"text"), ("/b.txt.gz", b"packed")]


@pytest.mark.parametrize(
    ("packer", "suffix"),
    [(lzma.compress, "xz"), (gzip.compress, "gz")],
)
def test_a_damaged_package_is_named(tmp_path, packer, suffix):
    write_package(tmp_path / "p.deb", {"/a.txt": bytes(range(256)) * 50}, packer, suffix)
    whole = (tmp_path / "p.deb").read_bytes()
    (tmp_path / "p.deb").write_bytes(whole[:-60] + bytes(20) + whole[-40:])
    with pytest.raises(UserError, match=r"cannot read .*p\.deb"):
        list(debian_text.read_files(tmp_path / "p.deb", ""))


@pytest.mark.parametrize("limit", ["nan", "0", "-1"])
def test_a_limit_that_is_no_size_is_refused_before_anything_is_read(tmp_path, limit):
    with pytest.raises(SystemExit) as refused:
        debian_corpus.main(["none.deb", f"--output={tmp_path}/x", f"--set_megabytes={limit}"])
    assert refused.value.code == 2
    assert not (tmp_path / "x").exists()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--output="):
        debian_corpus.main(["none.deb", f"--output={tmp_path}/file"])


@pytest.mark.parametrize("content", [b"", b"no archive", b"!<arch>\n" + b"x" * 60])
def test_a_file_that_is_no_package_is_refused(tmp_path, content):
    (tmp_path / "p.deb").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*p\.deb"):
        list(debian_text.read_files(tmp_path / "p.deb", ""))


def test_html_becomes_lines_without_menus_and_with_code_as_it_is():
    page = (
        "<head><title>T</title></head><nav>menu</nav><h1>Name</h1><p>one\n  <b>two</b> &amp; three"
        "</p><pre>if x:\n    y</pre><script>1</script><ul><li>a<li>b</ul><footer>f</footer>"
    )
    assert debian_text.html_text(page) == ("Name\n\none two & three\n\nif x:\n    y\n\na\nb\n")


def test_a_dictionary_is_cut_before_headwords_and_nothing_is_lost():
    entries = [f"word{i}\n   meaning of {i}\n\n" for i in range(1000)]
    documents = list(debian_text.dictionary_documents("".join(entries).encode()))
    assert "".join(documents) == "".join(entries)
    assert len(documents) > 5
    assert all(document.startswith("word") for document in documents)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    files = {package.name: {} for package in debian_corpus.PACKAGES}
    for package in debian_corpus.PACKAGES:
        for number in range(10):
            words = " ".join(f"{package.name}{package.kind}{number}-{i}" for i in range(60))
            files[package.name] |= _file(package, number, words.encode())
    return [write_package(folder / f"{name}_1-1_all.deb", f) for name, f in files.items()]


def _file(package, number, words):
    """Returns a file that the package's pattern matches."""
    suffixes = (".html", ".en.html", ".txt", ".rst", ".pod", ".dict.dz", ".go", ".hpp", ".h")
    suffixes += (".py", ".md", ".rst.txt")
    stems = ("/usr/page", "/usr/en-US/page", "/usr/java.base/page", "/usr/eigen3/page")
    paths = (f"{stem}{number}{suffix}" for stem in stems for suffix in suffixes)
    path = next(path for path in paths if debian_corpus.re.search(package.pattern, path))
    content = b"<p>" + words + b"</p>" if path.endswith(".html") else words + b"\n"
    return {path: gzip.compress(content) if path.endswith(".dz") else content}


def _rows(path):
    text = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_the_corpus_has_four_sets_disjoint_splits_and_the_same_bytes_again(packages, tmp_path):
    written = []
    for name, files in (("a", packages), ("a", packages), ("b", packages[::-1])):
        assert debian_corpus.main([*files, f"--output={tmp_path / name}"]) == 0
        written.append({p.relative_to(tmp_path / name): p.read_bytes()
                        for p in sorted((tmp_path / name).rglob("*.zst"))})  # fmt: skip
    assert written[0] == written[1] == written[2]
    texts = {}
    for split in ("train", "validation"):
        rows = [row for p in (tmp_path / "a" / split).rglob("*.zst") for row in _rows(p)]
        sets = {row["meta"]["redpajama_set_name"] for row in rows}
        assert sets == set(DEBIAN.sets.values())
        texts[split] = {row["text"] for row in rows}
        assert len(texts[split]) == len(rows)
    assert not texts["train"] & texts["validation"]
    assert len(texts["train"] | texts["validation"]) == 10 * len(debian_corpus.PACKAGES)


def test_a_limit_cuts_every_set(packages):
    documents = debian_corpus.read_documents(packages)
    train, validation = debian_corpus.split(documents, 5000)
    for set_name in DEBIAN.sets.values():
        sizes = [len(d.text) for d in [*train, *validation] if d.set_name == set_name]
        assert 5000 <= sum(sizes) < 5000 + max(sizes)


def test_missing_packages_are_named(packages):
    with pytest.raises(UserError, match="no .deb file of mh-book"):
        debian_corpus.read_documents([p for p in packages if "mh-book" not in p])
