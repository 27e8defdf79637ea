"""`prts tpu create|setup|run|delete`: Cloud TPU slices by gcloud.

Needs only the standard library and gcloud, so that `tpu_scripts/` work on any laptop.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prts_jax.cli import run
from prts_jax.cli.arguments import OneLineParser
from prts_jax.errors import UserError, without_credentials
from prts_jax.launch import accelerators, slices, workers

SOURCE = {
    "source": "this repository for the workers: gs://….tar.gz (`git archive`) or a git URL",
    "revision": "branch or tag of a git URL",
}
TEXTS = {
    "create": {
        "runtime_version": "VM image (default: the generation's)",
        "valid_until": "longest wait, such as 6h",
        "service_account": "identity of the workers",
        "network": "VPC network (default: the project's)",
        "subnetwork": "VPC subnetwork (default: the project's)",
        "startup_script": "file run by every worker at each boot; see `prts tpu run "
        "--write_startup_script`",
    },
    "setup": SOURCE,
    "run": SOURCE
    | {
        "write_startup_script": "instead of starting now, write this file for `prts tpu create "
        "--startup_script`; it sets up from --source and trains at each boot",
    },
    "delete": {},
}
"""Command → flag → help; the default is ""."""

SUMMARIES = {
    "create": "request slices, as a queued resource",
    "setup": "install Python and this repository on all workers",
    "run": "train on all workers, detached, with logs on GCS",
    "delete": "delete the queued resource and its slices",
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `prts tpu`; each of its commands has its own flags."""
    parser = OneLineParser(prog="prts tpu", description=__doc__.splitlines()[0])
    names = "|".join(SUMMARIES)
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    parsers = {}
    for name, summary in SUMMARIES.items():
        command = parsers[name] = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--name", required=True, help="the queued resource's name")
        command.add_argument("--zone", required=True, help="such as us-central2-b")
        command.add_argument("--project", default="", help="default: gcloud's setting")
        command.add_argument("--dry_run", action="store_true", help="print the gcloud arguments")
        for flag, text in TEXTS[name].items():
            command.add_argument(f"--{flag}", default="", help=text)
        if name != "delete":
            addresses = "workers without external addresses (ssh by IAP)"
            command.add_argument("--internal_ips", action="store_true", help=addresses)
    types = "GENERATION-SIZE in gcloud's notation: " + ", ".join(accelerators.GENERATIONS)
    parsers["create"].add_argument("--accelerator_type", required=True, help=types)
    count = "number of slices; more than one: multi-slice"
    parsers["create"].add_argument("--slices", type=int, default=1, help=count)
    exclusive = parsers["create"].add_mutually_exclusive_group()
    for value in slices.PROVISIONING[1:]:
        exclusive.add_argument(f"--{value}", dest="provisioning", action="store_const", const=value)
    parsers["create"].set_defaults(provisioning=slices.PROVISIONING[0])
    parsers[
        "run"
    ].usage = "prts tpu run --name=… --zone=… --workdir=gs://… [flags] -- TRAIN_ARGUMENTS…"
    parsers["run"].add_argument("--workdir", required=True, help="the run's folder, gs://…")
    parsers["delete"].add_argument("--yes", action="store_true", help="do not ask for confirmation")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; see `prts tpu --help`.

    Raises:
      UserError: invalid flags, gcloud is not installed, or a script is not writable.
    """
    own, train_arguments = _split(argv)
    options = parser().parse_args(own)
    if train_arguments and options.command != "run":
        raise UserError("--: only `prts tpu run` takes arguments of `prts train`; leave them out")
    resource = slices.QueuedResource(options.name, options.zone, options.project)
    if options.command == "run" and options.write_startup_script:
        script = workers.startup_script(_source(options), options.workdir, train_arguments)
        return _write(options.write_startup_script, script, options.dry_run)
    command = _gcloud_arguments(resource, options, train_arguments)
    if options.dry_run:
        print(without_credentials(shlex.join(command)))
        return 0
    return _execute(command)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments before and after the first `--`."""
    arguments = list(argv)
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _source(options: argparse.Namespace) -> workers.Source:
    if not options.source:
        raise UserError("--source is missing: workers install it; give gs://….tar.gz or a git URL")
    return workers.Source(options.source, options.revision)


def _gcloud_arguments(
    resource: slices.QueuedResource, options: argparse.Namespace, train_arguments: Sequence[str]
) -> list[str]:
    if options.command == "create":
        fields = slices.Request.__dataclass_fields__
        return slices.create(
            resource, slices.Request(**{name: getattr(options, name) for name in fields})
        )
    if options.command == "setup":
        return workers.setup(resource, _source(options), options.internal_ips)
    if options.command == "run":
        if options.source or options.revision:
            raise UserError(
                "--source: only with --write_startup_script; "
                "install it with `prts tpu setup` and leave it out here"
            )
        return workers.run(resource, options.workdir, train_arguments, options.internal_ips)
    return slices.delete(resource, without_asking=options.yes)


def _write(path: str, script: str, dry_run: bool) -> int:
    if dry_run:
        print(without_credentials(script), end="")
        return 0
    partial = Path(f"{path}.partial")
    try:
        partial.write_text(script, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"--write_startup_script={path}: {error.strerror}; name a file in a writable folder"
        ) from error
    print(f"wrote {path}; next: prts tpu create --startup_script={shlex.quote(path)} …")
    return 0


def _execute(command: Sequence[str]) -> int:
    print(f"+ {without_credentials(shlex.join(command))}", file=sys.stderr)
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(
            "gcloud: not on PATH; install the Google Cloud CLI, or use --dry_run"
        ) from error
    if code != 0:
        print(f"prts tpu: gcloud ended with exit code {code}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "tpu"))
