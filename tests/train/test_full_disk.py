"""A run whose disk fills up ends with one line and exit code 75, and its command goes on later."""

import re
import resource

import pytest

from prts_jax import cli
from tests.train import tiny
from tests.train.interrupting import call_during_step


@pytest.fixture(scope="module")
def undisturbed(stores, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(["train", *stores.flags(), f"--workdir={workdir}"]) == 0
    return workdir


@pytest.mark.parametrize(("step", "largest_file"), [(1, 20_000), (4, 100)])
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_bit_for_bit(
    stores, undisturbed, tmp_path, monkeypatch, capsys, step, largest_file
):
    """A limit of the size of files fails writes half-way, as a full disk does."""
    command = ["train", *stores.flags(), f"--workdir={tmp_path / 'run'}"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch:
            full = (largest_file, limits[1])
            call_during_step(patch, step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, full))
            assert cli.main(command) == 75
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    text = capsys.readouterr().err
    assert re.search(r"prts train: .* (could not|cannot) be written \(File too large\); free", text)
    assert "Traceback" not in text
    assert cli.main(command) == 0
    assert tiny.curve(tiny.read_lines(tmp_path / "run")) == tiny.curve(tiny.read_lines(undisturbed))
    tiny.assert_same(tiny.stored_params(tmp_path / "run"), tiny.stored_params(undisturbed))
