"""A stand-in for gcloud: replays the states and failures of both services and keeps a bucket.

In process, a `FakeCloud` is the runner. On the PATH, this file is the program `gcloud`: it keeps
its state as JSON in the file $FAKE_CLOUD.
"""

import fnmatch
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prts_jax.launch.gcloud import Result

NOT_FOUND = Result(1, "", "ERROR: (gcloud) NOT_FOUND: The resource was not found")


@dataclass
class FakeCloud:
    """Resources, bucket and the future of every request.

    Attributes:
      timelines: for every launch, the states that `describe` or `list-instances` shows, one a call;
        the last one stays. "exit N" writes N as the result of the attempt, as process 0 does.
      hosts: members of a group.
      failures: [part of a command, error message, number of times].
      resources: "KIND NAME" of what exists.
      files: URL → text of the bucket.
      scripts: start-up scripts, one for every launch.
      calls: all argument lists.
    """

    timelines: list[list[str]] = field(default_factory=lambda: [["ACTIVE"]])
    hosts: int = 4
    failures: list[list] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, command: Sequence[str], stdin: str | None = None) -> Result:
        """Runs a command, as `prts_jax.launch.gcloud.run`."""
        words = [word for word in command if word != "alpha"]
        self.calls.append(list(command))
        line = " ".join(words)
        for failure in self.failures:
            if failure[0] in line and failure[2] > 0:
                failure[2] -= 1
                return Result(1, "", f"ERROR: (gcloud) {failure[1]}")
        if words[1] == "storage":
            return self._storage(words[2:], stdin)
        if "queued-resources" in words:
            return self._queued(words[4], words[5:])
        if words[1:3] == ["compute", "ssh"]:
            return Result(0, f"host {words[3]} 3.12.1 jax 0.10.2\n")
        at = next((i for i, w in enumerate(words) if w in ("create", "delete", "list")), 0)
        if "list-instances" in words:
            return self._members(words[words.index("list-instances") + 1])
        if at and words[at - 1] in ("managed", "instance-templates", "resource-policies"):
            return self._compute(words[at - 1], words[at], words[at + 1 :])
        return Result(0)

    def count(self, *words: str) -> int:
        """Number of calls that hold all words."""
        return sum(all(word in call for word in words) for call in self.calls)

    def _storage(self, words: list[str], stdin: str | None) -> Result:
        names = [word for word in words[1:] if not word.startswith("--")]
        if words[0] == "cp":
            source, target = names
            self.files[target] = stdin if source == "-" else Path(source).name
            return Result(0)
        matching = [self.files[url] for url in self.files if fnmatch.fnmatch(url, names[0])]
        if not matching:
            return Result(1, "", "ERROR: The following URLs matched no objects or files")
        return Result(0, "".join(matching))

    def _launch(self, flags: list[str]) -> None:
        for flag in flags:
            if flag.startswith("--metadata-from-file=startup-script="):
                self.scripts.append(Path(flag.rpartition("=")[2]).read_text())

    def _now(self) -> str:
        """The present state of the newest launch."""
        timeline = self.timelines[0]
        if timeline[0].startswith("exit "):
            value = dict(re.findall(r"^(PRTS_\w+)=(.*)$", self.scripts[-1], re.MULTILINE))
            result = f"result-{value['PRTS_ATTEMPT']}-{value['PRTS_NONCE']}"
            self.files[f"{value['PRTS_WORKDIR']}/launch/{result}"] = timeline.pop(0)[5:] + "\n"
            return self._now()
        return timeline.pop(0) if len(timeline) > 1 else timeline[0]

    def _gone(self) -> None:
        if len(self.timelines) > 1:
            self.timelines.pop(0)

    def _queued(self, verb: str, words: list[str]) -> Result:
        name = f"request {words[0]}"
        if verb == "create":
            if name in self.resources:
                return Result(1, "", "ERROR: ALREADY_EXISTS: it exists")
            self.resources.append(name)
            self._launch(words)
            return Result(0)
        if name not in self.resources:
            return NOT_FOUND
        if verb == "delete":
            self.resources.remove(name)
            self._gone()
            return Result(0)
        if verb == "ssh":
            return Result(0, "".join(f"host w{i} 3.12.1 jax 0.10.2\n" for i in range(self.hosts)))
        state, _, message = self._now().partition(": ")
        failed = {"failedData": {"error": {"message": message}}} if message else {}
        return Result(0, json.dumps({"state": {"state": state} | failed}))

    def _compute(self, kind: str, verb: str, words: list[str]) -> Result:
        if verb == "list":
            pattern = re.search(r"name[~=](\S+)", words[0])[1]
            names = [n.partition(" ")[2] for n in self.resources if n.startswith(kind)]
            return Result(0, "\n".join(n for n in names if re.search(pattern, n)))
        names = [w for w in words if not w.startswith("--") and w != "workload-policy"]
        if verb == "create":
            self.resources.append(f"{kind} {names[0]}")
            self._launch(words)
            return Result(0)
        for name in names:
            if f"{kind} {name}" not in self.resources:
                return NOT_FOUND
            self.resources.remove(f"{kind} {name}")
        if kind == "managed":
            self._gone()
        elif kind == "instance-templates" and any("managed" in r for r in self.resources):
            return Result(1, "", "ERROR: The instance_template is already being used")
        return Result(0)

    def _members(self, group: str) -> Result:
        if f"managed {group}" not in self.resources:
            return NOT_FOUND
        state, _, message = self._now().partition(": ")
        if state == "EMPTY":
            return Result(0, "[]")
        members = [
            {"instance": f"zones/z/instances/{group}-{i:04d}", "currentAction": "NONE"}
            | {"instanceStatus": "RUNNING"}
            for i in range(self.hosts)
        ]
        if state == "CREATING":
            for member in members:
                member |= {"currentAction": "CREATING", "instanceStatus": ""}
                if message:
                    code, _, text = message.partition(" ")
                    errors = {"errors": [{"code": code, "message": text}]}
                    member["lastAttempt"] = {"errors": errors}
        if state == "LOST":
            members[0]["instanceStatus"] = "TERMINATED"
        return Result(0, json.dumps(members))


def main() -> int:
    """Runs one command on the cloud of $FAKE_CLOUD."""
    file = Path(os.environ["FAKE_CLOUD"])
    cloud = FakeCloud(**json.loads(file.read_text())) if file.exists() else FakeCloud()
    stdin = sys.stdin.read() if "-" in sys.argv else None
    result = cloud(["gcloud", *sys.argv[1:]], stdin)
    file.write_text(json.dumps(asdict(cloud)))
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.code


if __name__ == "__main__":
    sys.exit(main())
