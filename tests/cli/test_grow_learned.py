"""`prts grow --operator=learned`: by matrices learned elsewhere, or those learning starts from."""

import json

import numpy as np
import pytest

from prts_jax.checkpoint.layout import read_lineage
from prts_jax.checkpoint.matrices_files import matrices_file
from prts_jax.cli import grow, run
from prts_jax.cli.family_tree import draw
from prts_jax.growth import dense
from prts_jax.growth.learned import with_arrays
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from tests.checkpoint.tiny import MODEL, write_source
from tests.train.tiny import stored_params


@pytest.fixture
def source(tmp_path):
    write_source(tmp_path / "source")
    return f"--source={tmp_path / 'source'}"


@pytest.fixture
def matrices(tmp_path):
    """Matrices of twice the layers, in a file somewhere."""
    started = make_map(MODEL, None, "learned", factor=2)
    declarations = declare(started.target)
    arrays = {name: array + 0.1 for name, array in dense.initial(started, declarations).items()}
    file = tmp_path / "matrices.npz"
    file.write_bytes(with_arrays(started, declarations, arrays).matrices.to_bytes())
    return file


def test_it_grows_by_learned_matrices_and_keeps_them(source, matrices, tmp_path, capsys):
    target = tmp_path / "grown"
    flags = ["--operator=learned", "--factor=2", f"--matrices={matrices}"]
    assert grow.main([source, f"--target={target}", *flags]) == 0
    assert "strongest of mixed layers" in capsys.readouterr().out
    lineage = read_lineage(str(target))
    assert f"learned in {matrices}: cost unknown" in draw(str(target), lineage)
    (digest,) = lineage.matrices
    again = [*flags[:2], f"--matrices={matrices_file(str(target), digest)}"]
    assert grow.main([source, f"--target={tmp_path / 'again'}", *again]) == 0
    first = stored_params(target)
    for name, leaf in stored_params(tmp_path / "again").items():
        np.testing.assert_array_equal(leaf, first[name], err_msg=name)


def test_a_dry_run_says_that_layers_are_mixed(source, tmp_path, capsys):
    flags = ["--operator=learned", "--factor=2", "--learn_steps=0", "--dry_run"]
    assert grow.main([source, f"--target={tmp_path / 'grown'}", *flags]) == 0
    text = capsys.readouterr().out
    assert "before learning" in text
    assert "layers mixed" in text
    assert "matrices mix layers and positions" in text


def test_json_says_that_it_was_streamed(source, matrices, tmp_path, capsys):
    flags = ["--operator=learned", "--factor=2", f"--matrices={matrices}", "--json"]
    assert grow.main([source, f"--target={tmp_path / 'grown'}", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "stream"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--factor=2"], "--operator=learned: nothing to learn from here; grow in a run"),
        (["--factor=2", "--matrices=no/file.npz"], "no/file.npz: cannot be read"),
        (["--factor=2", "--matrices=pyproject.toml"], "holds no matrices"),
        (["--factor=3", "--matrices=MATRICES"], r"is (6, 3) in the file, and this growth needs"),
        (["--factor=2", "--learn_steps=0", "--mode=reference"], "changes its values"),
    ],
)
def test_what_cannot_be_ends_in_one_line_and_leaves_nothing(
    source, matrices, tmp_path, capsys, flags, message
):
    flags = [flag.replace("MATRICES", str(matrices)) for flag in flags]
    argv = [source, f"--target={tmp_path / 'grown'}", "--operator=learned", *flags]
    assert run(grow.main, argv, "grow") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "grown").exists()
