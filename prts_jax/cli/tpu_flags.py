"""Commands and flags of `prts tpu`; every command takes all settings as flags."""

import argparse
import dataclasses

from prts_jax.cli.arguments import OneLineParser
from prts_jax.launch import settings
from prts_jax.launch.settings import Settings

SOURCE = {
    "source": "this repository for the hosts: gs://….tar.gz or a git URL (default: the working "
    "tree, copied to the bucket)",
    "revision": "branch or tag of a git URL",
    "extras": "extras of the package to install (default: tpu)",
}
JOB = {"workdir": "the run's folder, gs://… (default: BUCKET/NAME)"}
LAUNCH = SOURCE | JOB | {"after": "bash file that process 0 runs after the training"}
TEXTS: dict[str, dict[str, str]] = {
    "create": LAUNCH
    | {"startup_script": "file run by every host at each boot, instead of arguments after --"},
    "setup": SOURCE,
    "run": LAUNCH
    | {
        "write_startup_script": "instead of starting now, write this file for `prts tpu create "
        "--startup_script`; it sets up from --source and trains at each boot",
    },
    "status": JOB,
    "logs": JOB | {"host": "part of a host's name (default: all hosts)"},
    "ssh": {"host": "SLICE/HOST such as 0/3, or all (default: 0/0)"},
    "stop": {},
    "delete": {},
    "babysit": LAUNCH,
    "doctor": {},
}
"""Command → flag → help; the default is ""."""

NUMBERS = {
    "max_retries": (10, "rent again at most N times in a row without an hour of activity"),
    "max_hours": (0.0, "stop and delete after N hours (default: never)"),
    "max_cost": (0.0, "stop and delete at this cost by --price (default: never)"),
    "price": (0.0, "price of a chip for an hour"),
    "poll": (60.0, "seconds between two looks (default: 60)"),
}

SUMMARIES = {
    "create": "rent slices; with `-- TRAIN_ARGUMENTS…`, which train from their first boot on",
    "setup": "install Python and this repository on all hosts",
    "run": "train on all hosts, detached, with logs on GCS",
    "status": "show the slices' state, the run's attempts and its hosts' last heartbeats",
    "logs": "print the hosts' logs from the bucket",
    "ssh": "open a shell on a host, or run a command after --",
    "stop": "stop the run on all hosts, which saves; the slices stay",
    "delete": "delete all that costs money; may be repeated",
    "babysit": "rent, watch and rent again until the run is finished",
    "doctor": "check project, quota, bucket, network and hosts",
}

FOLLOWED = {
    "create": "TRAIN_ARGUMENTS…",
    "run": "TRAIN_ARGUMENTS…",
    "babysit": "TRAIN_ARGUMENTS…",
    "ssh": "COMMAND…",
}
"""Commands that take arguments after `--`."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `prts tpu`."""
    names = "|".join(SUMMARIES)
    parser = OneLineParser(prog="prts tpu", description=f"`prts tpu {names}`: Cloud TPU by gcloud.")
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name in FOLLOWED:
            command.usage = f"prts tpu {name} [flags] [-- {FOLLOWED[name]}]"
        command.add_argument("--dry_run", action="store_true", help="print the exact arguments")
        for flag, text in TEXTS[name].items():
            command.add_argument(f"--{flag}", default="", help=text)
        if name in ("create", "babysit"):
            text = "delete the slices after a success, or a mistake in what was given"
            command.add_argument("--delete_when_done", action="store_true", help=text)
        if name == "babysit":
            for flag, (number, text) in NUMBERS.items():
                command.add_argument(f"--{flag}", type=type(number), default=number, help=text)
        if name == "delete":
            command.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        _add_settings(command)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("settings, each also in the file of --settings")
    group.add_argument(
        "--settings", default="", metavar="FILE", help=f"default: {settings.DEFAULT_FILE}, if any"
    )
    for field in dataclasses.fields(Settings):
        text = field.metadata["help"]
        if field.name == "provisioning":
            exclusive = group.add_mutually_exclusive_group()
            for value in settings.PROVISIONING[1:]:
                exclusive.add_argument(
                    f"--{value}", dest="provisioning", action="store_const", const=value, help=value
                )
        elif isinstance(field.default, bool):
            group.add_argument(
                f"--{field.name}", action="store_const", const=True, help=text, dest=field.name
            )
        else:
            names = [f"--{field.name}"]
            names += ["--accelerator_type"] if field.name == "accelerator" else []
            kind = type(field.default)
            group.add_argument(*names, type=kind, default=None, help=text, dest=field.name)
