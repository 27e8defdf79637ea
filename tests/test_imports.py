"""Packages import only those that they may: growth no framework, training no TensorFlow."""

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each part may import itself and lower levels, never a higher one, nor another of its own level.
LEVELS = {
    "cli": 10,
    "study": 9.5,
    "report": 9,
    "aot": 9,
    "train": 8,
    "evaluate": 7,
    "formats": 6,
    "growth/on_disk": 6,
    "planning": 6,
    "checkpoint": 5,
    "data_pipelines": 4,
    "growth": 3,
    "model": 2,
    "feed": 2,
    "mesh": 1,
    "declaration": 0,
    "config": 0,
}
# Every room may use these, which import none of the above.
FOUNDATIONS = {
    "compilation",
    "distributed",
    "errors",
    "heartbeats",
    "launch",
    "local_lock",
    "paths",
    "processes",
    "progress",
    "special_ids",
    "peers",
    "text_table",
    "tree",
}

# library: the files that may import it
OWNERS = {
    "seqio": ["data_pipelines/text/tasks.py", "data_pipelines/text/seqio_file_task.py"],
    "tensorflow": ["data_pipelines/text/tasks.py"],
    "tensorflow_datasets": ["data_pipelines/text/tasks.py", "data_pipelines/slimpajama/"],
    "apache_beam": ["data_pipelines/build/beam.py", "data_pipelines/slimpajama/"],
    "pyarrow": ["data_pipelines/text/parquet.py"],
    "orbax": ["prts_jax/checkpoint/items.py"],
    "flax": ["prts_jax/model/"],
}
# Only an extra installs these. The plain install trains, grows and reports without them.
OPTIONAL = {
    "apache_beam",
    "lm_eval",
    "pyarrow",
    "seqio",
    "sentencepiece",
    "tensorflow",
    "tensorflow_datasets",
    "tokenizers",
    "zstandard",
    "torch",
    "transformers",
    "safetensors",
    "wandb",
}
NOT_IN_GROWTH = {"flax", "orbax", "optax", "tensorflow", "torch"}
# These prepare text, with the extra [data] or [beam].
PREPARES_TEXT = tuple(f"data_pipelines/{room}/" for room in ("build", "chat", "slimpajama", "text"))
# A class of lm-evaluation-harness, with the extra [eval].
NEEDS_AN_EXTRA = (*PREPARES_TEXT, "prts_jax/evaluate/harness.py")


def sources() -> list[Path]:
    return sorted([*ROOT.glob("prts_jax/**/*.py"), *ROOT.glob("data_pipelines/**/*.py")])


def imported_modules(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    """Yields absolute module names; `from a import b` counts as `a` and as `a.b`."""
    package = path.relative_to(ROOT).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def imports(path: Path) -> set[str]:
    """All imports of a file, those inside functions included."""
    return set(imported_modules(ast.walk(ast.parse(path.read_text())), path))


def imports_when_loaded(path: Path) -> set[str]:
    """The imports that run with the file: not those inside functions, nor for type checkers."""

    def executed(body: list[ast.stmt]) -> Iterator[ast.AST]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from executed(node.orelse)
                continue
            yield node
            for field in ("body", "orelse", "finalbody"):
                yield from executed(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from executed(handler.body)

    return set(imported_modules(executed(ast.parse(path.read_text()).body), path))


def part_of(module: str) -> str | None:
    """The part of ours that a module belongs to: "growth" of prts_jax.growth.map."""
    first, *rest = module.split(".")
    if first == "data_pipelines":
        return first
    if first != "prts_jax" or not rest:
        return None
    room = "/".join(rest[:2])
    return room if room in LEVELS else rest[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


every_file = pytest.mark.parametrize("path", sources(), ids=name_of)


@every_file
def test_imports_point_one_way(path: Path):
    part = part_of(module_of(path))
    if part in ("__init__", "py"):
        part = None
    for module in imports(path):
        target = part_of(module)
        if target not in LEVELS or target == part:
            continue
        assert part in LEVELS, f"{name_of(path)}: everyone may import it, so not {module}"
        assert LEVELS[target] < LEVELS[part], f"{name_of(path)} imports {module}, not below it"


def test_every_module_of_ours_has_a_place_in_the_order():
    parts = {part_of(module_of(path)) for path in sources()} - {"__init__"}
    assert parts <= LEVELS.keys() | FOUNDATIONS, "say where it stands: in LEVELS or FOUNDATIONS"


@every_file
def test_a_library_with_an_owner_is_imported_there_alone(path: Path):
    for module in imports(path):
        owners = OWNERS.get(module.split(".")[0])
        if owners is not None:
            assert any(name_of(path).startswith(owner) for owner in owners), (
                f"{name_of(path)} imports {module}; only {', '.join(owners)} may"
            )


@every_file
def test_nothing_optional_is_imported_when_a_module_is_loaded(path: Path):
    if name_of(path).startswith(NEEDS_AN_EXTRA):
        return
    loaded = {module.split(".")[0] for module in imports_when_loaded(path)}
    assert not loaded & OPTIONAL, f"{name_of(path)}: import it where it is used"


@pytest.mark.parametrize("path", sorted(ROOT.glob("prts_jax/growth/*.py")), ids=name_of)
def test_growth_takes_arrays_and_declarations_only(path: Path):
    assert not {module.split(".")[0] for module in imports(path)} & NOT_IN_GROWTH


@pytest.mark.parametrize("path", sorted(ROOT.glob("prts_jax/launch/*.py")), ids=name_of)
def test_launching_needs_the_standard_library_only(path: Path):
    theirs = {module.split(".")[0] for module in imports(path)} - {"prts_jax"}
    assert theirs <= sys.stdlib_module_names


def test_test_files_import_helper_modules_and_no_test_file():
    for path in sorted(ROOT.glob("tests/**/*.py")):
        for module in imports(path):
            parts = module.split(".")
            assert not any(part.startswith("test_") for part in parts), (
                f"{name_of(path)} imports {module}: move what they share into a helper module"
            )


def loaded_after(code: str, *modules: str) -> set[str]:
    """Runs code in a fresh interpreter; returns which of the modules it has loaded."""
    report = f"\nimport sys\nprint(*[name for name in {modules!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return set(done.stdout.split())


NOT_INSTALLED = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_the_plain_install_loads_everything_but_what_needs_an_extra():
    plain = NOT_INSTALLED.format(names=sorted(OPTIONAL))
    files = [path for path in sources() if not name_of(path).startswith(NEEDS_AN_EXTRA)]
    modules = [module_of(path).removesuffix(".__init__") for path in files]
    modules = [module for module in modules if not module.endswith("__main__")]
    assert {"prts_jax.cli.train", "prts_jax.cli.grow", "prts_jax.train.loop"} <= set(modules)
    assert loaded_after(plain + "import " + ", ".join(modules)) == set()


def test_training_and_growing_leave_tensorflow_and_torch_unloaded_where_installed():
    code = (
        "import prts_jax.cli.train, prts_jax.train.loop, prts_jax.train.metrics\n"
        "import prts_jax.cli.grow, prts_jax.growth.on_disk.stream\n"
    )
    assert loaded_after(code, "tensorflow", "seqio", "torch", "transformers") == set()


EMPTY_BUCKETS = """
import http.server, os, threading
class NotFound(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), NotFound)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{server.server_port}"
"""


def test_a_bucket_path_does_not_load_tensorflow():
    # etils takes TensorFlow for gs:// wherever it is installed, unless told otherwise.
    assert importlib.util.find_spec("tensorflow"), "install .[data]: nothing is shown without it"
    code = (
        "import prts_jax.cli.train, prts_jax.train.loop\n"
        "from etils import epath\n"
        "assert not epath.Path('gs://bucket/run').exists()\n"
    )
    assert loaded_after(EMPTY_BUCKETS + code, "tensorflow", "gcsfs") == {"gcsfs"}


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="shows nothing without torch, of .[hf]"
)
def test_tensorboard_is_written_without_torch_and_google_cloud(tmp_path: Path):
    # tensorboardX imports both where they are installed, which takes seconds.
    code = (
        "from prts_jax.train.metrics import MetricsLog\n"
        f"log = MetricsLog({str(tmp_path)!r}, None, tensorboard=True)\n"
        "log.write({'step': 1, 'loss': 2.0})\n"
        "log.close()\n"
    )
    heavy = ("torch", "google.cloud.storage")
    assert loaded_after(code, "tensorboardX", *heavy) == {"tensorboardX"}


def test_prts_itself_and_its_tpu_command_load_the_standard_library_only():
    # `-S` hides site-packages: a laptop that has nothing installed.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "prts_jax.cli", "tpu", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "create" in done.stdout
