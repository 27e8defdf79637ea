"""`prts tpu create|setup|run|status|logs|ssh|stop|delete|babysit|doctor`: Cloud TPU by gcloud.

Needs only the standard library and gcloud, so that `tpu_scripts/` work on any laptop.
"""

import argparse
import dataclasses
import math
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prts_jax.cli import EXIT_FAILED, run
from prts_jax.cli.tpu_flags import FOLLOWED, NUMBERS, parser
from prts_jax.errors import StorageError, UserError, without_credentials
from prts_jax.launch import attempts, babysit, code, doctor, gcloud, record, rent, settings, workers
from prts_jax.launch.settings import Settings


def main(argv: Sequence[str]) -> int:
    """Runs the command; see `prts tpu --help`."""
    own, following = _split(argv)
    options = parser().parse_args(own)
    if following and options.command not in FOLLOWED:
        raise UserError(f"--: only {', '.join(FOLLOWED)} take arguments after it; leave them out")
    if not following and options.command in ("run", "babysit"):
        raise UserError(
            f"{options.command}: has nothing to train; give the arguments of `prts train` after "
            "--, such as -- --config=FILE"
        )
    flags = {field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)}
    return _COMMANDS[options.command](settings.read(options.settings, flags), options, following)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments before and after the first `--`."""
    arguments = list(argv)
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _source(options: argparse.Namespace, needed: bool = True) -> workers.Source | None:
    if options.source:
        return workers.Source(options.source, options.revision, options.extras or "tpu")
    if needed:
        raise UserError("--source is missing: hosts install it; give gs://….tar.gz or a git URL")
    return None


def _job(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> workers.Job:
    after = ""
    if options.after:
        try:
            after = Path(options.after).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--after={options.after}: cannot be read ({error}); check it"
            ) from error
    workdir = options.workdir or chosen.folder
    return workers.Job(workdir, tuple(following), slices=chosen.slices, after=after)


def _watch(
    chosen: Settings, options: argparse.Namespace, following: Sequence[str]
) -> babysit.Watch:
    job = _job(chosen, options, following)
    limits = attempts.Limits()
    if options.command == "babysit":
        for flag in NUMBERS:
            value = getattr(options, flag)
            if not 0 <= value < math.inf or (flag == "poll" and value < 1):
                raise UserError(f"--{flag}={value}: too small, or no number; give a positive one")
        limits = attempts.Limits(
            options.max_retries, options.max_hours, options.max_cost, options.price
        )
    if limits.cost and not limits.price:
        raise UserError("--max_cost: needs --price, the price of a chip for an hour")
    return babysit.Watch(
        chosen,
        job,
        _source(options, needed=False),
        lambda: _pack(job, gcloud.run, dry_run=False),
        limits,
        options.extras or "tpu",
        options.delete_when_done,
        getattr(options, "poll", 60.0),
    )


def _pack(job: workers.Job, runner: gcloud.Runner, dry_run: bool) -> str:
    """Copies the working tree to the bucket, or prints the commands that do; returns its URL."""
    with tempfile.TemporaryDirectory() as folder:
        url, commands = code.pack(job.workdir, str(Path(folder) / "code.tar.gz"), runner)
        for command in commands:
            if dry_run:
                print(gcloud.text(command))
            elif (done := runner(command)).code:
                raise StorageError(f"{url}: cannot be written ({done.reason}); start again")
    return url


def _create(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    script = options.startup_script
    if script and following:
        raise UserError("--startup_script: holds a command already; leave out what follows --")
    if script and not Path(script).is_file():
        raise UserError(
            f"--startup_script={script}: no such file; "
            "write one with `prts tpu run --write_startup_script=FILE`"
        )
    service, size = rent.SERVICES[settings.slice_of(chosen).backend], settings.slice_of(chosen)
    if not following:
        return _print_or_run(service.create(chosen, size, script), options.dry_run)
    watch = _watch(chosen, options, following)
    if options.dry_run:
        return _print_launch(watch)
    if options.delete_when_done:
        last = service.delete(chosen, None, True)[0]
        job = dataclasses.replace(watch.job, on_success=shlex.join(last))
        watch = dataclasses.replace(watch, job=job)
    if reason := babysit.launch(watch, gcloud.run, time.time()):
        print(f"prts tpu: {reason}; `prts tpu delete` removes what is there", file=sys.stderr)
        return EXIT_FAILED
    print(f"rented {chosen.name}; see `prts tpu status`, and `prts tpu babysit` to keep it alive")
    return 0


def _print_launch(watch: babysit.Watch) -> int:
    """Prints what a launch runs; the start-up script is a temporary file there."""
    if watch.source is None:
        _pack(watch.job, gcloud.run, dry_run=True)
    service, size = rent.service_of(watch.settings)
    return _print_or_run(service.create(watch.settings, size, "startup.sh"), dry_run=True)


def _setup(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    source = _source(options)
    assert source is not None
    return _on_hosts(chosen, workers.setup_command(source), "all", options.dry_run)


def _run(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    job = _job(chosen, options, following)
    if options.write_startup_script:
        source = _source(options)
        assert source is not None
        script = workers.startup_script(source, job)
        return _write(options.write_startup_script, script, options.dry_run)
    if options.source or options.revision:
        raise UserError(
            "--source: only with --write_startup_script; "
            "install it with `prts tpu setup` and leave it out here"
        )
    return _on_hosts(chosen, workers.run_command(job), "all", options.dry_run)


def _status(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    service, size = rent.SERVICES[settings.slice_of(chosen).backend], settings.slice_of(chosen)
    job = workers.Job(options.workdir or chosen.folder)

    def show(command: gcloud.Command) -> gcloud.Result:
        if options.dry_run:
            print(gcloud.text(command))
            return gcloud.Result(1, "", "not found")
        return gcloud.run(command)

    seen = service.describe(chosen, size, show)
    lines = [*record.report(job, show), *record.hosts(job, show)]
    if not options.dry_run:
        print(f"{chosen.name}: {seen}", *lines, sep="\n")
    return 0


def _logs(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    workdir = (options.workdir or chosen.folder).rstrip("/")
    pattern = f"*{options.host}*" if options.host else "*"
    return _print_or_run(
        [("gcloud", "storage", "cat", f"{workdir}/logs/{pattern}")], options.dry_run
    )


def _ssh(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    host = options.host or "0/0"
    if not re.fullmatch(r"all|[0-9]+/[0-9]+", host):
        raise UserError(f"--host={host}: neither SLICE/HOST such as 0/3, nor all; change it")
    return _on_hosts(chosen, shlex.join(following), host, options.dry_run)


def _stop(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    return _on_hosts(chosen, workers.stop_command(), "all", options.dry_run)


def _delete(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    runner = None if options.dry_run else gcloud.run
    code = 0
    for service in rent.services_to_release(chosen):
        for command in service.delete(chosen, runner, options.yes):
            code = _print_or_run([command], options.dry_run) or code
    return code


def _babysit(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    watch = _watch(chosen, options, following)
    if options.dry_run:
        _print_launch(watch)
        return _delete(chosen, argparse.Namespace(dry_run=True, yes=True), [])

    def say(line: str) -> None:
        print(without_credentials(line), flush=True)

    return babysit.babysit(watch, gcloud.run, time.time, time.sleep, say)


def _doctor(chosen: Settings, options: argparse.Namespace, following: Sequence[str]) -> int:
    if options.dry_run:
        return _print_or_run([check.command for check in doctor.checks(chosen)], dry_run=True)
    findings = doctor.examine(chosen, gcloud.run)
    for finding in findings:
        print(finding)
    return EXIT_FAILED if any(finding.fix for finding in findings) else 0


_Command = Callable[[Settings, argparse.Namespace, Sequence[str]], int]
_COMMANDS: dict[str, _Command] = {
    "create": _create,
    "setup": _setup,
    "run": _run,
    "status": _status,
    "logs": _logs,
    "ssh": _ssh,
    "stop": _stop,
    "delete": _delete,
    "babysit": _babysit,
    "doctor": _doctor,
}


def _on_hosts(chosen: Settings, command: str, host: str, dry_run: bool) -> int:
    service, size = rent.service_of(chosen)
    runner = None if dry_run else gcloud.run
    return _print_or_run(service.on_hosts(chosen, size, runner, command, host), dry_run)


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


def _print_or_run(commands: Sequence[gcloud.Command], dry_run: bool) -> int:
    """Prints commands, or runs them in view until one fails."""
    for command in commands:
        if dry_run:
            print(gcloud.text(command))
        elif code := gcloud.run_in_view(command):
            print(f"prts tpu: {command[0]} ended with exit code {code}", file=sys.stderr)
            return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:], "tpu"))
