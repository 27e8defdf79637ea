"""`prts inspect` as a user and a program meet it."""

import dataclasses
import hashlib
import json
import re

import pytest

from prts_jax.checkpoint.layout import read_lineage
from prts_jax.checkpoint.records import ChangeRecord
from prts_jax.cli import family_tree, grow, inspect, run
from prts_jax.model.architecture import declare
from tests.checkpoint.tiny import DECLARED, write_source


@pytest.fixture
def grown(tmp_path):
    write_source(tmp_path / "source")
    argv = [f"--source={tmp_path / 'source'}", f"--target={tmp_path / 'grown'}", "--factor=2"]
    assert grow.main(argv) == 0
    return str(tmp_path / "grown")


def as_json(path, capsys):
    capsys.readouterr()
    assert inspect.main([path, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_the_promised_keys(grown, capsys):
    actual = as_json(grown, capsys)
    assert {
        "format",
        "step",
        "config",
        "params",
        "position",
        "tokens",
        "flops",
        "lineage",
        "digests",
    } <= actual.keys()
    lineage = read_lineage(grown)
    assert (actual["step"], actual["position"], actual["tokens"], actual["flops"]) == (
        lineage.step,
        lineage.position,
        lineage.tokens,
        lineage.flops,
    )
    assert actual["config"]["model"]["layers"] == 6
    assert actual["lineage"][0]["map"]["layers"] == [0, 1, 2, 0, 1, 2]


def test_json_describes_every_parameter(grown, capsys):
    declared = declare(read_lineage(grown).model)
    assert as_json(grown, capsys)["params"] == {
        path: {
            "shape": list(declaration.shape),
            "dtype": "float32",
            "bytes": 4 * prod(declaration.shape),
        }
        for path, declaration in declared.items()
    }


def prod(shape):
    product = 1
    for size in shape:
        product *= size
    return product


def test_one_digest_a_path_combines_its_layers_in_order(grown, capsys):
    digests = as_json(grown, capsys)["digests"]
    lineage = read_lineage(grown)
    assert digests.keys() == DECLARED.keys()
    assert digests["head"] == lineage.digests["head"][0]
    layers = "".join(lineage.digests["layers/mlp/up"])
    assert digests["layers/mlp/up"] == hashlib.sha256(layers.encode()).hexdigest()[:16]


def test_the_table_shows_past_and_parameters(grown, capsys):
    capsys.readouterr()
    assert inspect.main([grown]) == 0
    out = capsys.readouterr().out
    assert "model      6 layers, 16 wide, 4 heads (2 kv) of 4, mlp 24, vocabulary 48" in out
    assert "grown      at step 7: stack: 3 → 6 layers" in out
    assert re.search(r"layers/attention/q +6×16×4×4 +float32 +6,144 B  [0-9a-f]{16}\n", out)


def test_the_family_tree_shows_every_stage_and_how_it_grew(grown, capsys):
    capsys.readouterr()
    assert inspect.main([grown, "--lineage"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{grown}: 2 stages, 4,096 tokens, 1.500e+12 FLOPs",
        "│",
        "● 3 layers × 16, mlp 24, 4 heads  steps 0 to 7  4,096 tokens  1.500e+12 FLOPs  100.0%",
        "│",
        "├─ stack: 3 → 6 layers (0:3,0:3), connection rate 4/5",
        "│",
        "● 6 layers × 16, mlp 24, 4 heads  steps 7 to 7      0 tokens  0.000e+00 FLOPs    0.0%",
    ]


def test_evaluation_and_changes_on_resume_stand_under_their_stage(grown):
    change = ChangeRecord(7, "data.batch", 8, 16)
    evaluation = {"step": 7, "validation_loss": 3.25}
    lineage = dataclasses.replace(read_lineage(grown), changes=(change,), evaluation=evaluation)
    assert family_tree.draw(grown, lineage).splitlines()[-2:] == [
        "│   validation loss 3.2500 at step 7",
        "│   changed at step 7: data.batch 8 → 16",
    ]


def test_the_family_tree_is_of_one_checkpoint_of_ours(grown, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"")
    for arguments in ([grown, grown], [str(tmp_path / "model.safetensors")]):
        assert run(inspect.main, [*arguments, "--lineage"], "inspect") == 2
        captured = capsys.readouterr()
        assert "lineage" in captured.err
        assert captured.err.count("\n") == 1


def test_the_stages_are_in_the_json(grown, capsys):
    first, second = as_json(grown, capsys)["stages"]
    assert (first["growth"], first["first_step"], first["last_step"]) == (None, 0, 7)
    assert second["model"]["layers"] == 6
    assert second["growth"]["operator"] == "stack"
    assert second["tokens"] == 0


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    assert run(inspect.main, [str(tmp_path / "nowhere")], "inspect") == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_checkpoint_without_parameters_is_damaged(grown, tmp_path, capsys):
    (tmp_path / "grown" / "params" / "_METADATA").unlink()
    assert run(inspect.main, [grown], "inspect") == 2
    assert "_METADATA: cannot be read" in capsys.readouterr().err
