"""The commands of the page on interop, run as they stand there on a tiny model."""

import collections
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from tests.formats.foreign_models import save_transformers, shape

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


@pytest.mark.slow
def test_the_commands_of_the_page_work(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    save_transformers(tmp_path / "smollm2", shape())
    built = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<s>"))
    built.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    text = "Once upon a time there was a page of commands\n" * 30
    built.train_from_iterator(
        [text], tokenizers.trainers.BpeTrainer(vocab_size=40, special_tokens=["<s>", "</s>"])
    )
    built.save("smollm2/tokenizer.json")
    Path("smollm2/tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    Path("some_text").mkdir()
    Path("some_text/a.txt").write_text(text)

    [block] = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    said = collections.defaultdict(str)
    for line in block.strip().splitlines():
        prts, command, *flags = shlex.split(line)
        assert prts == "prts"
        assert importlib.import_module(f"prts_jax.cli.{command}").main(flags) == 0
        said[command] += capsys.readouterr().out
    assert "Once upon a time" in said["generate"]
    assert re.search(r"^all +\d+", said["eval"], re.MULTILINE)
    assert re.search(r"grown − ours$(.*\n)+^loss all ", said["eval"], re.MULTILINE)
    assert (tmp_path / "differences.png").exists()
    assert "model.layers: 2 in A, 4 in B" in said["inspect"]
    assert (tmp_path / "grown_hf" / "tokenizer.json").exists()  # through growth, too
    loaded = transformers.AutoModelForCausalLM.from_pretrained("grown_hf")
    assert loaded.config.num_hidden_layers == 4
