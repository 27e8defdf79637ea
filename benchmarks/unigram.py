"""Loss of the best model that ignores context: the floor that a language model has to be below.

    python benchmarks/unigram.py runs/shakespeare

Fits token frequencies on DIR/train (plus one for each token) and prints nats per token on
DIR/validation, predicted tokens as in training's evaluation: all but the first.
"""

import sys

import numpy as np

from data_pipelines.store.store import TokenStore

train, validation = (TokenStore.open(f"{sys.argv[1]}/{split}") for split in ("train", "validation"))
counts = np.bincount(train.read(0, train.tokens), minlength=train.vocab_size) + 1
log_share = np.log(counts / counts.sum())
loss = -log_share[validation.read(1, validation.tokens - 1)].mean()
print(f"unigram loss {loss:.4f} nats per token")
