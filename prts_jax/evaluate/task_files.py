"""Unknown tasks of lm-evaluation-harness, noticed without its index, which takes half a minute."""

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator

from prts_jax.config import nearest
from prts_jax.errors import UserError

_NAMES = re.compile(rb"^(?:task|group|tag): *['\"]?([\w.+-]+)", re.MULTILINE)


def check_mentioned(names: Iterable[str]) -> None:
    """Refuses names that occur in no task file of the installed harness.

    The harness parses all of its 14,000 YAML files before it knows a name; here they are read as
    bytes, until every name has occurred. Of a name that occurs, the harness's index decides.

    Raises:
      UserError: a name occurs nowhere.
    """
    wanted, known = {name.encode() for name in names}, set[bytes]()
    for text in contents():
        known.update(_NAMES.findall(text))
        wanted = {name for name in wanted if name not in text}
        if not wanted:
            return
    if known:
        raise unknown(min(wanted).decode(), [name.decode() for name in sorted(known)])


def unknown(name: str, known: Iterable[str]) -> UserError:
    """Returns the error of an unknown task, with similar names."""
    return UserError(f"--tasks: {name!r} is unknown; {nearest(name, known)[:200]}")


def contents() -> Iterator[bytes]:
    """Yields the contents of the YAML files and templates; of none if there is no harness."""
    harness = importlib.util.find_spec("lm_eval")
    for package in (harness and harness.submodule_search_locations) or ():
        for folder, _, files in os.walk(os.path.join(package, "tasks")):
            for file in files:
                if "yaml" in file or "." not in file:
                    with open(os.path.join(folder, file), "rb") as stream:
                        yield stream.read()
