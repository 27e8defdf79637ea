"""`prts convert` and `prts inspect` of other formats, as a user and a program meet them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prts_jax.cli import convert, inspect, run
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.formats.model_source import ModelSource
from prts_jax.formats.transfer import ConversionReport
from tests.checkpoint.tiny import flip_byte, write_source
from tests.conftest import RunPrts
from tests.formats.foreign_models import save_transformers, shape, transformers_model, write_plain

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
    actual = json.loads(capsys.readouterr().out)
    assert actual["config"]["model.layers"] == [2, 3]
    assert actual["shapes"]["head"] == [[16, 40], [16, 48]]
    assert "final_norm" in actual["values"]
    assert not actual["same"]
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
        (["--vocab=99999999999999999999"], "at most 2,147,483,647 entries"),
        (["--shard_gb=nan"], "is not a finite number"),
        (["--shard_gb=1e9"], "at most 2,147,483,647 entries and 1,000,000 GB"),
        (["--tokenizer=/nowhere"], "--tokenizer=/nowhere: has no tokenizer.json"),
        (["--target=/\udcff"], "holds bytes that are not UTF-8"),
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


def test_verify_finds_a_value_that_the_disk_has_changed(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last bit of what was written flips between writing and reading again."""

    def flipping(write: Callable[..., ConversionReport], pattern: str) -> Callable[..., object]:
        def written(source: ModelSource, target: str, *more: object) -> ConversionReport:
            report = write(source, target, *more)
            file = max(Path(target).rglob(pattern), key=lambda path: path.stat().st_size)
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
            return report

        return written

    assert convert.main(argv(folder, tmp_path / "ours")) == 0
    module = convert.export
    flipped = flipping(module.write_huggingface, "*.safetensors")
    monkeypatch.setattr(module, "write_huggingface", flipped)
    back = argv(tmp_path / "ours", tmp_path / "back", "--verify", kind="orbax", to="hf")
    assert run(convert.main, back, "convert") == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'back'}: token_embedding: differs from {tmp_path / 'ours'}" in line


@pytest.mark.parametrize("verify", ["weights", "logits"])
def test_verify_finds_a_config_that_computes_otherwise(
    folder: Path,
    tmp_path: Path,
    verify: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """config.json gets another RoPE base between writing and reading again; weights stay equal."""
    write = convert.export.write_huggingface

    def altering(source: ModelSource, target: str, *more: Any) -> ConversionReport:
        report = write(source, target, *more)
        file = Path(target) / "config.json"
        file.write_text(file.read_text().replace("10000.0", "9000.0"))
        return report

    monkeypatch.setattr(convert.export, "write_huggingface", altering)
    command = argv(folder, tmp_path / "back", f"--verify={verify}", "--json", to="hf")
    assert run(convert.main, command, "convert") == 1
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    expected = {"weights": "model.rope_theta (10000.0 and 9000.0)", "logits": "logits differ by up"}
    assert expected[verify] in line
    assert line.endswith("remove it and convert again")
    assert json.loads(out)["tensors"] == 21


def test_mixed_dtypes_rounded_to_one_have_equal_logits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    mixed = transformers_model(shape(), "bfloat16")
    with torch.no_grad():
        for name, parameter in mixed.named_parameters():
            if "norm" in name:
                parameter.data = parameter.data.float() * 1.001
    mixed.save_pretrained(tmp_path / "hf")
    command = argv(tmp_path / "hf", tmp_path / "back", "--dtype=bfloat16", "--json", to="hf")
    assert run(convert.main, [*command, "--verify"], "convert") == 0
    assert json.loads(capsys.readouterr().out)["largest_logit_difference"] < 1e-4


def test_verify_finds_damage_in_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    up = np.asarray(write_source(tmp_path / "ours")["layers"]["mlp"]["up"])
    write = convert.convert.write_checkpoint

    def damaging(source: ModelSource, target: str, *more: Any) -> ConversionReport:
        report = write(source, target, *more)
        flip_byte(Path(target), up[1].tobytes())
        return report

    monkeypatch.setattr(convert.convert, "write_checkpoint", damaging)
    copy = argv(tmp_path / "ours", tmp_path / "copy", "--verify", kind="orbax")
    assert run(convert.main, copy, "convert") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path / 'copy'}: layers/mlp/up, layer 1: is not what was saved" in line


@pytest.mark.slow
def test_memory_is_for_some_tensors_whatever_the_models_size(
    tmp_path: Path, run_prts: RunPrts
) -> None:
    """A model 600 MB larger takes less than an eighth of that more, there and back."""

    def peak(source: Path, target: Path, kind: str, to: str) -> int:
        actual = run_prts("convert", *argv(source, target, "--json", kind=kind, to=to))
        rss: int = json.loads(actual.stdout)["peak_rss_bytes"]
        return rss

    large = ModelConfig(vocab=1000, embed=512, heads=8, kv_heads=8, head_dim=64, mlp=2048)
    sizes, there, back = [], [], []
    for layers in (1, 36):
        root = tmp_path / str(layers)
        root.mkdir()
        sizes.append(write_plain(root / "hf", dataclasses.replace(large, layers=layers)))
        there.append(peak(root / "hf", root / "ours", "hf", "orbax"))
        back.append(peak(root / "ours", root / "back", "orbax", "hf"))
    more = sizes[1] - sizes[0]
    assert more > 580e6
    assert there[1] - there[0] < more / 8
    assert back[1] - back[0] < more / 8


def test_an_existing_target_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert run(convert.main, argv(folder, tmp_path / "out"), "convert") == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("target", ["hf/out", "hf/deep/out", "link/out", "other/../hf/out"])
def test_a_target_inside_the_source_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = sorted(folder.rglob("*"))
    assert run(convert.main, argv(folder, tmp_path / target), "convert") == 2
    error = capsys.readouterr().err
    assert "lies inside the source" in error
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1"])
def test_an_export_of_files_of_no_size_is_refused(value: str):
    with pytest.raises(UserError, match="--shard_gb: "):
        convert.main(["--from=orbax", "--source=a", "--target=b", "--to=hf", f"--shard_gb={value}"])
