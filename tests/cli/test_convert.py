"""`prts convert` and `prts inspect` of other formats, as a user and a program meet them."""

import json
from pathlib import Path

import pytest

from prts_jax.cli import convert, inspect, run
from tests.checkpoint.foreign_models import save_transformers, shape
from tests.checkpoint.tiny import write_source

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_transformers(tmp_path / "hf", shape(), "bfloat16")
    return tmp_path / "hf"


def argv(source: Path, target: Path, *more: str, kind: str = "hf", to: str = "orbax") -> list[str]:
    return [f"--from={kind}", f"--to={to}", f"--source={source}", f"--target={target}", *more]


def test_there_and_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(argv(folder, tmp_path / "ours", "--verify")) == 0
    assert "all weights equal, bit for bit" in capsys.readouterr().out
    back = argv(tmp_path / "ours", tmp_path / "back", "--json", kind="orbax", to="hf")
    assert convert.main([*back, "--verify=logits"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "bfloat16"
    assert report["largest_logit_difference"] < 1e-4
    assert report["same_arg_max"] == 1
    assert inspect.main([str(folder), str(tmp_path / "back")]) == 0
    assert "are the same model" in capsys.readouterr().out


def test_inspect_shows_a_foreign_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["format"] == "hf"
    assert shown["config"]["model"]["kv_heads"] == 2
    assert shown["params"]["model.norm.weight"] == {"shape": [16], "dtype": "bfloat16", "bytes": 32}
    assert inspect.main([str(folder)]) == 0
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().out


def test_inspect_says_what_differs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path / "ours")
    assert inspect.main([str(folder), str(tmp_path / "ours"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["model.layers"] == [2, 3]
    assert found["shapes"]["head"] == [[16, 40], [16, 48]]
    assert "final_norm" in found["values"]
    assert not found["same"]
    assert inspect.main([str(folder), str(tmp_path / "ours")]) == 0
    text = capsys.readouterr().out
    assert "model.vocab: 40 in A, 48 in B" in text
    assert "final_norm: other values" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--to=gguf"], "--to=gguf: is none of orbax, hf"),
        (["--from=gguf"], "--from=gguf: is none of hf, litgpt, orbax"),
        (["--dtype=bfloat16"], "hold float32"),
        (["--to=hf", "--dtype=int8"], "--dtype=int8: is none of float32"),
        (["--preset=6L2048H"], "only a .pth file lacks its shape"),
        (["--vocab=-1"], "must be above 0"),
        (["--verify=maybe"], "is none of weights, logits"),
        (["--source=/nowhere"], "/nowhere: has no config.json"),
        (["--from=litgpt", "--source=/nowhere"], "/nowhere: does not exist"),
        (["--from=orbax", "--source=/nowhere"], "/nowhere: does not exist"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(convert.main, argv(folder, tmp_path / "out", *more), "convert") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_existing_target_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert run(convert.main, argv(folder, tmp_path / "out"), "convert") == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
