"""Several stores of one tokenizer to train on, each with its share: "DIR,0.7;DIR,0.3"."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from data_pipelines.store.index import SEPARATOR
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError
from prts_jax.paths import as_path


@dataclass(frozen=True)
class Stores:
    """Several stores, described by the attributes of one `TokenStore`.

    Attributes:
      stores: the stores, or some sets of each.
      shares: share of each in the windows of a run, 1 in sum.
      names: short name of each, which its sources have before their own.
    """

    stores: tuple[TokenStore, ...]
    shares: tuple[Fraction, ...]
    names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """The fingerprints with their shares: "SHA256=7/10,SHA256=3/10"."""
        pairs = zip(self.stores, self.shares, strict=True)
        return ",".join(f"{store.fingerprint}={share}" for store, share in pairs)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of all stores, each as "NAME/SOURCE"."""
        pairs = zip(self.names, self.stores, strict=True)
        return tuple(f"{name}/{source}" for name, store in pairs for source in store.sources)

    @property
    def first_sources(self) -> tuple[int, ...]:
        """The id of each store's first source in `sources`."""
        counts = (len(store.sources) for store in self.stores[:-1])
        return tuple(itertools.accumulate(counts, initial=0))

    @property
    def directory(self) -> str:
        """The first store's folder; the tokenizer in it is that of all."""
        return self.stores[0].directory

    @property
    def tokenizer(self) -> str:
        """The sha256 of the tokenizer's file."""
        return self.stores[0].tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return self.stores[0].vocab_size

    @property
    def eos_id(self) -> int:
        """The id that ends a document."""
        return self.stores[0].eos_id


def store_shares(train: str) -> dict[str, Fraction]:
    """Parses `config.data.train`: one store, or "DIR,SHARE;DIR,SHARE".

    A text without a semicolon is one folder, whatever else is in it, and so is the name of a local
    folder. The last comma of an entry precedes its share; shares are relative to their sum.

    Returns:
      Folder → share, 1 in sum, in the order given.

    Raises:
      UserError: an entry without a share above 0, or a folder named twice.
    """
    if SEPARATOR not in train or os.path.isdir(os.path.expanduser(train)):
        return {train: Fraction(1)}
    shares: dict[str, Fraction] = {}
    for entry in train.split(SEPARATOR):
        folder, _, value = (text.strip() for text in entry.rpartition(","))
        share = parse_share(value)
        if not folder or share <= 0 or folder in shares:
            raise UserError(
                f"config.data.train: cannot read {entry.strip()!r}; give each store once with a "
                "share above 0, as in 'DIR,0.7;DIR,0.3'"
            )
        shares[folder] = share
    total = sum(shares.values())
    return {folder: share / total for folder, share in shares.items()}


def first_store(train: str) -> str:
    """Returns the first store that `config.data.train` names; its tokenizer is that of all.

    Raises:
      UserError: as `store_shares`.
    """
    return next(iter(store_shares(train)))


def parse_share(text: str) -> Fraction:
    """Returns a share exactly: 0.7, 7e-1 or 7/10; 0 if the text is no such number."""
    if len(text) > 40 or re.search(r"e[+-]?\d{3}", text, re.IGNORECASE):
        return Fraction(0)  # its digits would fill the memory
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return Fraction(0)


def open_stores(train: str) -> TokenStore | Stores:
    """Opens the store, or the stores, that `config.data.train` names.

    Raises:
      UserError: as `store_shares` and `TokenStore.open`; or stores that differ in tokenizer, end
        id or packing, or hold the same tokens.
    """
    shares = store_shares(train)
    if len(shares) == 1:
        return TokenStore.open(next(iter(shares)))
    stores = tuple(TokenStore.open(folder) for folder in shares)
    for number, store in enumerate(stores):
        for other in stores[:number]:
            _check_pair(other, store)
    return Stores(stores, tuple(shares.values()), _names(list(shares)))


def _check_pair(one: TokenStore, other: TokenStore) -> None:
    """Raises UserError unless two stores may be read in one run."""
    values = (
        ("tokenizer", "tokenizer (sha256)", "the same --tokenizer"),
        ("vocab_size", "number of token ids", "the same --tokenizer"),
        ("eos_id", "end id", "the same --end_id"),
        ("packed", "length of packed rows (0: not packed)", "one command and the same --length"),
    )
    for name, meaning, remedy in values:
        if getattr(one, name) != getattr(other, name):
            raise UserError(
                f"config.data.train: {one.directory} and {other.directory} differ in the "
                f"{meaning}: {getattr(one, name)!s:.12} and {getattr(other, name)!s:.12}; make "
                f"both with {remedy}"
            )
    if one.fingerprint == other.fingerprint:
        raise UserError(
            f"config.data.train: {one.directory} and {other.directory} hold the same tokens; name "
            "one of them, with the sum of both shares"
        )


def _names(folders: Sequence[str]) -> tuple[str, ...]:
    """Returns the part of each path that tells it from the others: /data/web/train → web."""
    paths = [str(as_path(folder)).rstrip("/").split("/") for folder in folders]
    while len({path[-1] for path in paths}) == 1 and min(map(len, paths)) > 1:
        paths = [path[:-1] for path in paths]
    for size in itertools.count(1):
        names = tuple("/".join(path[-size:]) for path in paths)
        if len(set(names)) == len(names) or size > max(map(len, paths)):
            break
    return names


def short_fingerprint(fingerprint: str) -> str:
    """Returns a fingerprint of one store or several, with 12 digits of each."""
    return re.sub(r"[0-9a-f]{64}", lambda digest: digest[0][:12], fingerprint)
