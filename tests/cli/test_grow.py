"""`prts grow` as a user meets it."""

import json
import re

import pytest

from prts_jax.checkpoint.layout import read_lineage
from prts_jax.cli import convert, grow, run
from prts_jax.evaluate import agreement
from prts_jax.growth.on_disk import reference
from tests.checkpoint.tiny import save_with_optimizer, write_source
from tests.train.tiny import write_store

CONFIG = """
from prts_jax.config import default_config

def get_config(layers="12"):
    config = default_config()
    config.model.update(
        vocab=48, layers=int(layers), embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24
    )
    return config
"""


@pytest.fixture
def source(tmp_path):
    write_source(tmp_path / "source")
    return f"--source={tmp_path / 'source'}"


def test_a_checkpoint_is_stacked_and_the_map_drawn(source, tmp_path, capsys):
    assert grow.main([source, f"--target={tmp_path / 'grown'}", "--factor=4"]) == 0
    out = capsys.readouterr().out
    assert "stack: 3 → 12 layers (0:3,0:3,0:3,0:3), connection rate 8/11" in out
    assert read_lineage(str(tmp_path / "grown")).model.layers == 12


def test_every_operator_and_its_options_are_flags(source, tmp_path, capsys, caplog):
    target = f"--target={tmp_path / 'grown'}"
    argv = [source, target, "--operator=zero", "--factor=2", "--order=stack"]
    assert grow.main(argv) == 0
    assert "source 2 ··●··○" in capsys.readouterr().out
    record = read_lineage(str(tmp_path / "grown")).growth[0].map
    assert record.operator == "zero"
    assert record.zeroed == (3, 4, 5)
    assert (
        "streaming, because growth by reference is not possible: zero makes layers" in caplog.text
    )


def test_a_shape_that_cannot_be_exported_is_warned_of_and_not_written(source, tmp_path, capsys):
    target = tmp_path / "grown"
    widen = [source, f"--target={target}", "--operator=split", "--widths=heads=12,kv_heads=6"]
    for more in (["--dry_run"], ["--json"]):
        assert grow.main([*widen, *more]) == 0
        warning = capsys.readouterr().err
        assert "width is no multiple of its heads (embed=16, heads=12)" in warning
        assert "the grown model cannot be exported" in warning
    export = ["--from=orbax", "--to=hf", f"--source={target}", f"--target={tmp_path / 'hf'}"]
    assert run(convert.main, export, "convert") == 2
    assert "transformers loads no LlamaForCausalLM" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_json_is_one_object_with_the_promised_keys(source, tmp_path, capsys):
    target = f"--target={tmp_path / 'grown'}"
    assert grow.main([source, target, "--layers=1-23*2-3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report) == [
        "bytes_linked",
        "bytes_read",
        "bytes_written",
        "files_linked",
        "layers",
        "mode",
        "peak_rss_bytes",
        "reason",
        "seconds",
    ]
    assert report["mode"] == "reference"
    assert report["layers"] == [0, 1, 2, 1, 2, 2]


def test_an_optimizers_state_is_grown_beside_shared_parameters_and_named(tmp_path, capsys):
    path, _ = save_with_optimizer(tmp_path / "checkpoints")
    argv = [f"--source={path}", f"--target={tmp_path / 'grown'}", "--factor=2", "--optimizer=copy"]
    assert grow.main([*argv, "--dry_run"]) == 0
    assert "of optimizer state, which cannot be shared" in capsys.readouterr().out
    assert grow.main(argv) == 0
    assert "of optimizer state written in" in capsys.readouterr().out


def test_an_optimizer_that_is_not_there_or_has_no_such_name_is_refused(source, tmp_path, capsys):
    target = f"--target={tmp_path / 'grown'}"
    for option, message in (("copy", "holds no optimizer state to copy"), ("cop", "is unknown")):
        for more in ([], ["--dry_run"]):
            argv = [source, target, "--factor=2", f"--optimizer={option}", *more]
            assert run(grow.main, argv, "grow") == 2
            assert message in capsys.readouterr().err
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize(
    ("mode", "done", "said"),
    [
        ("auto", "reference", "shared with the source in"),
        ("reference", "reference", "shared with the source in"),
        ("stream", "stream", "written,"),
    ],
)
def test_the_mode_that_was_asked_for_is_used_and_said(source, tmp_path, capsys, mode, done, said):
    target = f"--target={tmp_path / 'grown'}"
    assert grow.main([source, target, "--factor=2", f"--mode={mode}"]) == 0
    assert said in capsys.readouterr().out
    again = f"--target={tmp_path / 'again'}"
    assert grow.main([source, again, "--factor=2", f"--mode={mode}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == done


def test_where_files_cannot_be_shared_layers_are_streamed_and_the_reason_is_said(
    source, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(reference, "obstacle", lambda work: "the moon is full")
    argv = [source, f"--target={tmp_path / 'grown'}", "--factor=2"]
    assert run(grow.main, [*argv, "--dry_run"], "grow") == 0
    assert (
        "streams, because growth by reference is not possible: the moon is full"
        in capsys.readouterr().out
    )
    assert run(grow.main, [*argv, "--mode=reference"], "grow") == 2
    error = capsys.readouterr().err
    assert "cannot be grown by reference: the moon is full; use --mode=stream" in error
    assert error.count("\n") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["source"]
    assert run(grow.main, [*argv, "--json"], "grow") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mode"], report["reason"]) == ("stream", "the moon is full")


def test_a_dry_run_draws_and_counts_and_writes_nothing(source, tmp_path, capsys):
    assert grow.main([source, f"--target={tmp_path / 'grown'}", "--factor=2", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "source 2 ··●··●" in out
    assert "shares the files of" in out
    assert [child.name for child in tmp_path.iterdir()] == ["source"]
    streamed = [f"--target={tmp_path / 'grown'}", "--factor=2", "--dry_run", "--mode=stream"]
    assert grow.main([source, *streamed]) == 0
    out = capsys.readouterr().out
    assert "reads " in out
    assert "writes " in out
    assert "free there: " in out
    assert re.search(r"needs about [0-9.]+ .?B of memory", out)
    assert "  layers copied  layers/attention/{k,o,q,v}" in out
    assert "not function preserving:\n  the stream passes through copied layers more" in out
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_a_dry_run_as_json(source, tmp_path, capsys):
    target = f"--target={tmp_path / 'grown'}"
    assert grow.main([source, target, "--factor=2", "--dry_run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mode"], report["expected_mode"]) == ("dry_run", "reference")
    assert report["bytes_written"] > report["bytes_read"] > 0
    assert report["bytes_free"] > 0
    assert report["expected_memory_bytes"] > 0
    assert report["connection_rate"] == 4 / 5
    assert not report["function_preserving"]
    assert len(report["not_preserving_because"]) == 1
    assert report["leaves"]["kept"] == ["final_norm", "head", "token_embedding"]


def test_verify_computes_both_models_and_prints_their_logits_and_losses(source, tmp_path, capsys):
    argv = [source, f"--target={tmp_path / 'grown'}", "--factor=2", "--verify"]
    assert grow.main(argv) == 0
    out = capsys.readouterr().out
    assert "verified in float32 on 1,024 tokens, random tokens" in out
    assert re.search(r"largest logit difference [0-9.e-]+, 1?[0-9.]+ of the largest logit", out)
    assert re.search(r"loss [0-9.]+ before, [0-9.]+ after", out)


def test_verify_on_a_store_as_json(source, tmp_path, capsys):
    write_store(tmp_path / "store", vocab=48)
    argv = [source, f"--target={tmp_path / 'grown'}", "--operator=zero", "--factor=2", "--json"]
    assert grow.main([*argv, f"--verify={tmp_path / 'store'}"]) == 0
    actual = json.loads(capsys.readouterr().out)["verified"]
    assert actual["data"] == f"the start of {tmp_path / 'store'}"
    assert actual["largest_difference"] == actual["relative_difference"] == 0
    assert actual["loss_before"] == actual["loss_after"]


def test_a_store_that_cannot_be_read_is_refused_before_anything_grows(source, tmp_path, capsys):
    argv = [source, f"--target={tmp_path / 'grown'}", "--factor=2", "--verify=no/store"]
    assert run(grow.main, argv, "grow") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["source"]


def test_a_function_that_was_to_be_kept_and_was_not_ends_in_exit_code_1(
    source, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(agreement, "tolerance", lambda before, after: -1.0)
    kept = ["--operator=zero", "--factor=2", "--verify"]
    assert run(grow.main, [source, f"--target={tmp_path / 'kept'}", *kept], "grow") == 1
    captured = capsys.readouterr()
    assert "its map says that it keeps the function" in captured.err
    assert "verified in float32" in captured.out
    assert (tmp_path / "kept" / "lineage").exists()
    not_kept = ["--factor=2", "--verify"]
    assert run(grow.main, [source, f"--target={tmp_path / 'other'}", *not_kept], "grow") == 0


def test_the_factor_comes_from_a_target_config(source, tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    target = f"--target={tmp_path / 'grown'}"
    assert grow.main([source, target, f"--target_config={tmp_path / 'config.py'}:9"]) == 0
    assert read_lineage(str(tmp_path / "grown")).growth[0].map.options == {"factor": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor=2", "--mode=refer"], "'refer' is none of auto, stream, reference"),
        (["--factor=0"], "growth.factor: is 0 and no target is given"),
        (["--operator=stak", "--factor=2"], "did you mean 'stack'"),
        (["--operator=solar", "--factor=2"], "operator 'solar' takes no factor"),
        (["--operator=block_expansion", "--every=2"], "divide the source's 3 layers"),
        (["--layers=123*"], "is no group"),
        (["--layers=12"], "growth never shrinks"),
        (["--layers=0:4"], "layer 3 is none of the source's layers 0 to 2"),
        (["--factor=2", "--target_config={}:12"], "list has 6 layers and the target"),
        (["--target_config={}:2"], "no multiple"),
    ],
)
def test_mistakes_end_in_exit_code_2_and_one_line(source, tmp_path, capsys, arguments, message):
    (tmp_path / "config.py").write_text(CONFIG)
    filled = [argument.format(tmp_path / "config.py") for argument in arguments]
    argv = [source, f"--target={tmp_path / 'grown'}", *filled]
    assert run(grow.main, argv, "grow") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "grown").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    argv = [f"--source={tmp_path}", f"--target={tmp_path / 'grown'}", "--factor=2"]
    assert run(grow.main, argv, "grow") == 2
    assert "no complete checkpoint there" in capsys.readouterr().err


def test_an_existing_target_is_refused_before_anything_is_read(source, tmp_path, capsys):
    argv = [source, f"--target={tmp_path}", "--factor=2"]
    assert run(grow.main, argv, "grow") == 2
    assert "exists already and is never overwritten" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_as_a_process(source, tmp_path, run_prts):
    arguments = [f"--target={tmp_path / 'grown'}", "--factor=2", "--mode=stream", "--json"]
    done = run_prts("grow", source, *arguments)
    assert json.loads(done.stdout)["layers"] == [0, 1, 2, 0, 1, 2]
    assert "left" in done.stderr
