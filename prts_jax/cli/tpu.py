"""`prts tpu create|setup|run|delete`: Cloud TPU slices, by way of gcloud.

Needs the standard library and gcloud alone, so that `tpu_scripts/` work on any laptop.
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
from prts_jax.errors import UserError
from prts_jax.launch import accelerators, slices, workers


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `prts tpu`; each of its commands has its own flags."""
    made = OneLineParser(prog="prts tpu", description=__doc__.splitlines()[0])
    commands = made.add_subparsers(dest="command", required=True, metavar="create|setup|run|delete")
    _create_flags(_command(commands, "create", "ask for slices, as a queued resource"))
    _setup_flags(_command(commands, "setup", "install Python and this repository on all workers"))
    _run_flags(_command(commands, "run", "train on all workers, detached, with logs on GCS"))
    delete = _command(commands, "delete", "delete the queued resource and its slices")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command; see `prts tpu --help`.

    Raises:
      UserError: what gcloud would refuse, gcloud not installed, or a script not writable.
    """
    own, train_arguments = _split(argv)
    options = parser().parse_args(own)
    if train_arguments and options.command != "run":
        raise UserError("--: only `prts tpu run` takes arguments of `prts train`; leave them out")
    place = slices.Place(options.name, options.zone, options.project)
    if options.command == "run" and options.write_startup_script:
        script = workers.startup_script(_source(options), options.workdir, train_arguments)
        return _write(options.write_startup_script, script, options.dry_run)
    command = _gcloud_arguments(place, options, train_arguments)
    if options.dry_run:
        print(shlex.join(command))
        return 0
    return _execute(command)


def _command(
    commands: "argparse._SubParsersAction[OneLineParser]", name: str, what: str
) -> argparse.ArgumentParser:
    made = commands.add_parser(name, help=what, description=what)
    made.add_argument("--name", required=True, help="the queued resource's name")
    made.add_argument("--zone", required=True, help="such as us-central2-b")
    made.add_argument("--project", default="", help="by default gcloud's own setting")
    made.add_argument(
        "--dry_run", action="store_true", help="print the exact gcloud arguments and stop"
    )
    return made


def _create_flags(create: argparse.ArgumentParser) -> None:
    create.add_argument(
        "--accelerator_type",
        required=True,
        help="GENERATION-SIZE, as gcloud writes it: " + ", ".join(accelerators.GENERATIONS),
    )
    create.add_argument("--slices", type=int, default=1, help="more than one: multi-slice")
    create.add_argument("--runtime_version", default="", help="by default the generation's image")
    how = create.add_mutually_exclusive_group()
    for provisioning in slices.PROVISIONING[1:]:
        how.add_argument(
            f"--{provisioning}", dest="provisioning", action="store_const", const=provisioning
        )
    create.set_defaults(provisioning=slices.PROVISIONING[0])
    create.add_argument("--valid_until", default="", help="give up waiting after this long, as 6h")
    create.add_argument("--service_account", default="", help="the workers' identity")
    create.add_argument("--network", default="")
    create.add_argument("--subnetwork", default="")
    create.add_argument("--internal_ips", action="store_true", help="no external addresses")
    create.add_argument(
        "--startup_script",
        default="",
        metavar="FILE",
        help="run by every worker at every boot; see `prts tpu run --write_startup_script`",
    )


def _setup_flags(setup: argparse.ArgumentParser) -> None:
    _source_flags(setup, required=True)
    _tunnel_flag(setup)


def _run_flags(start: argparse.ArgumentParser) -> None:
    start.usage = "prts tpu run --name=… --zone=… --workdir=gs://… [flags] -- TRAIN_ARGUMENTS…"
    start.add_argument("--workdir", required=True, help="the run's folder, gs://…")
    _source_flags(start, required=False)
    _tunnel_flag(start)
    start.add_argument(
        "--write_startup_script",
        default="",
        metavar="FILE",
        help="instead of starting now, write a script for `prts tpu create --startup_script` that "
        "sets up from --source and trains at every boot",
    )


def _source_flags(command: argparse.ArgumentParser, required: bool) -> None:
    command.add_argument(
        "--source",
        required=required,
        default="",
        help="this repository for the workers: gs://….tar.gz (`git archive`) or a git URL",
    )
    command.add_argument("--revision", default="", help="branch or tag of a git URL")


def _tunnel_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--internal_ips", action="store_true", help="workers have no external addresses: use IAP"
    )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns what stands before and after the first `--`."""
    arguments = list(argv)
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _source(options: argparse.Namespace) -> workers.Source:
    if not options.source:
        raise UserError(
            "--source is missing: what workers install at boot; give gs://….tar.gz or a git URL"
        )
    return workers.Source(options.source, options.revision)


def _gcloud_arguments(
    place: slices.Place, options: argparse.Namespace, train_arguments: Sequence[str]
) -> list[str]:
    if options.command == "create":
        fields = slices.Request.__dataclass_fields__
        return slices.create(
            place, slices.Request(**{name: getattr(options, name) for name in fields})
        )
    if options.command == "setup":
        return workers.setup(place, _source(options), options.internal_ips)
    if options.command == "run":
        if options.source or options.revision:
            raise UserError(
                "--source: only with --write_startup_script; "
                "install it with `prts tpu setup` and leave it out here"
            )
        return workers.run(place, options.workdir, train_arguments, options.internal_ips)
    return slices.delete(place, without_asking=options.yes)


def _write(path: str, script: str, dry_run: bool) -> int:
    if dry_run:
        print(script, end="")
        return 0
    partial = Path(f"{path}.partial")
    try:
        partial.write_text(script, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            f"--write_startup_script={path}: {error.strerror}; name a file in a folder of yours"
        ) from error
    print(f"wrote {path}; next: prts tpu create --startup_script={shlex.quote(path)} …")
    return 0


def _execute(command: Sequence[str]) -> int:
    print(f"+ {shlex.join(command)}", file=sys.stderr)
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(
            "gcloud: not on PATH; install the Google Cloud CLI, or look with --dry_run"
        ) from error
    if code != 0:
        print(f"prts tpu: gcloud ended with exit code {code}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "tpu"))
