"""`prts plan`: what it prints, for people and for programs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prts_jax.cli import COMMANDS, run
from prts_jax.cli.plan import main
from prts_jax.planning.guidelines import growth_timing

PLANNING = Path(__file__).resolve().parents[2] / "docs" / "planning.md"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_json_is_one_object_with_the_documented_keys(capsys):
    out = printed(capsys, "--params=7e9", "--tokens=2e12", "--preset=llama2_7b", "--json")
    assert out.count("\n") == 1
    plan = json.loads(out)
    assert plan["growth_tokens"] == pytest.approx(11.11e9, abs=0.005e9)
    assert plan["growth_factor"] == 4
    assert (plan["base"]["layers"], plan["base"]["embed"]) == (8, 4096)
    flops = plan["flops"]
    assert flops["base"] < flops["grown"] < flops["scratch"]
    assert flops["scratch"] / flops["grown"] - 1 == pytest.approx(plan["saving"]["speedup"])
    assert plan["hardware"] is None


def test_the_text_names_measurements_and_assumptions(capsys):
    out = printed(capsys, "--params=7e9", "--tokens=2e12", "--hardware=v5p-256")
    text = " ".join(out.split())
    assert "llama2_7b (the nearest preset in parameters; see --preset)" in text
    assert "growth after 11.11B tokens, by stacking 4 times" in text
    assert "speed-up 54.6%, 35.3% fewer FLOPs at equal loss, the base's included: extrap" in text
    assert "the paper measured 54.6% with its 7B against 300B tokens" in text
    assert "128 chips of 459 TFLOP/s at an assumed MFU of 40% (--mfu)" in text
    assert "warning tokens: 2e+12 is outside what the paper measured" in text
    assert "of up to 1.1B parameters" in text
    assert "286 tokens per parameter: above 20 the gain fades and a factor of 2 is advised" in text
    assert "(marin-community/marin #7838; a 46B mixture of experts" in text
    assert max(map(len, out.splitlines())) <= 100


def test_the_parts_of_the_grown_run_add_up(capsys):
    out = printed(capsys, "--preset=paper_7b", "--tokens=3e11", "--hardware=v4-64")
    rows = {
        line.split("  ")[0]: [float(x) for x in re.findall(r"\d\.\d{3}e\d+|\d+\.\d\d$", line)]
        for line in out.splitlines()
    }
    columns = zip(rows["base"], rows["target after growth"], rows["grown, both"], strict=True)
    for base, target, grown in columns:
        assert base + target == pytest.approx(grown, rel=1e-3)
    assert "warning" not in out


def commands_and_results() -> list[tuple[list[str], str]]:
    """Rows of the page's table of four Llamas: the command's arguments, and d in billions."""
    rows = re.findall(r"^\|.*\| `prts plan ([^`]*)` \| ([\d.]+)B \|", PLANNING.read_text(), re.M)
    return [(arguments.split(), growth_tokens) for arguments, growth_tokens in rows]


def test_the_documented_commands_give_the_documented_growth_tokens(capsys):
    documented = commands_and_results()
    assert [d for _, d in documented] == ["6.58", "11.11", "15.84", "42.48"]
    for arguments, growth_tokens in documented:
        assert f"after {growth_tokens}B tokens" in printed(capsys, *arguments)


def test_the_documented_output_is_the_output(capsys):
    example = re.search(r"```\n\$ prts plan ([^\n]*)\n(.*?)```", PLANNING.read_text(), re.S)
    assert example is not None
    assert printed(capsys, *example[1].split()) == example[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--params=7e9"], "required: --tokens"),
        (["--tokens=2e12"], "--params is missing"),
        (["--params=seven", "--tokens=2e12"], "--params: invalid float value: 'seven'"),
        (["--params=-7e9", "--tokens=2e12"], "params: is -7e+09"),
        (["--params=7e9", "--tokens=2e6"], "equation 4 has no meaning"),
        (["--preset=lama2_7b", "--tokens=2e12"], "did you mean 'llama2_7b'?"),
        (["--params=7e9", "--tokens=2e12", "--hardware=v5pp-8"], "did you mean 'v5p'?"),
        (["--params=7e9", "--tokens=2e12", "--mfu=0.4"], "--mfu: says nothing without --hardware"),
        (["--params=7e9", "--tokens=2e12", "--t_mix=2e12"], "--t_mix=2e+12: tokens, above 0"),
        (["--params=7e9", "--tokens=2e12", "--saturation=1"], "five constants of at least 0"),
        (["--params=7e9", "--tokens=2e12", "--length=9999999999"], "at most 1,073,741,824 tokens"),
        (["--params=7e9", "--tokens=2e12", "--factor=24"], "unrecognized arguments: --factor=24"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(capsys, arguments, message):
    assert run(main, arguments, "plan") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("prts plan: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_prts_plan_runs_on_the_cpu_without_heavy_imports():
    assert "plan" in COMMANDS
    program = (
        "import sys\n"
        "from prts_jax.cli.plan import main\n"
        "main(['--preset=paper_410m', '--tokens=4e11', '--json'])\n"
        "import jax\n"
        "assert jax.config.jax_platforms == 'cpu'\n"
        "heavy = {'orbax', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["growth_tokens"] == round(growth_timing(plan["target"]["params"], 4e11))
