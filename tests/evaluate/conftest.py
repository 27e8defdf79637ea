from pathlib import Path

import pytest

from tests.evaluate import worded


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, `other` (other weights), `apart` (the weights of `model`, trained with
    documents kept apart), `text` and `store`."""
    pytest.importorskip("tokenizers")
    root = tmp_path_factory.mktemp("words")
    worded.write_checkpoint(root / "model")
    worded.write_checkpoint(root / "other", seed=1)
    worded.write_checkpoint(root / "apart", documents=True)
    worded.write_store(root / "store", worded.write_text(root / "text"))
    return root
