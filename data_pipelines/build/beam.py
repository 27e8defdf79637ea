"""Builds a token store as an Apache Beam pipeline: the same bytes, from many machines.

    Create(file numbers) | Reshuffle | Map(write or keep one shard) | ToList | Map(finish)

The work on a file is `store_build.Build`'s, and finished shards are kept. A bad file does not end
the pipeline, because the runner would only retry it: all other files are written, and the last step
writes the errors into `failure.json` instead of an index.
"""

import contextlib
import functools
import io
import json
import logging
import os
import time
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from data_pipelines.build.cache import report_finished
from data_pipelines.build.rules import STRICT, Rules
from data_pipelines.build.store_build import Build
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Shard, write_json
from data_pipelines.text.file_task import FileTask
from prts_jax.errors import UserError
from prts_jax.local_lock import local_lock
from prts_jax.paths import PathLike, as_path, is_remote
from prts_jax.progress import report_to_stderr

# Beam only warns of an unknown flag; here that is an error.
logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.ERROR)

FAILURE = "failure.json"
NAMESPACE = "prts"  # of the counters that a runner shows

Outcome = tuple[int, Shard | str]
"""A file's number, and its shard or the error."""


def cache(
    task: FileTask,
    directory: PathLike,
    options: Sequence[str] = (),
    report: Callable[[str], None] = report_to_stderr,
    rules: Rules = STRICT,
) -> TokenStore:
    """Builds a token store with a Beam runner, or opens a finished one.

    Every worker must reach the folder and the input. Without options (`--runner=…`) Beam runs in
    this process. A `native.NativeTask` needs neither seqio nor TensorFlow.

    Raises:
      UserError: as `cache.cache`; or options that Beam does not know or refuses.
    """
    pipeline_options = parse_options(options)
    _refuse_unreachable(pipeline_options, [os.fspath(directory), *task.files])
    build = Build.of(task, directory, rules)
    with contextlib.nullcontext() if is_remote(directory) else local_lock(directory):
        if not report_finished(build, report):
            build.begin()
            _run(build, pipeline_options, report)
    return TokenStore.open(directory)


def parse_options(options: Sequence[str]) -> PipelineOptions:
    """Returns Beam's options; Beam itself ignores a misspelt flag.

    Raises:
      UserError: a flag that none of Beam's runners knows, or a value that it refuses.
    """
    parsed = PipelineOptions(list(options))
    usage = io.StringIO()
    try:
        with contextlib.redirect_stderr(usage):
            known = parsed.get_all_options()
            given = parsed.get_all_options(retain_unknown_options=True)
    except SystemExit as error:
        refusal = usage.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"Beam refuses its options: {refusal}") from error
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"Beam has no option --{unknown[0]}: see its PipelineOptions")
    return parsed


def _refuse_unreachable(options: PipelineOptions, paths: Sequence[str]) -> None:
    runner = options.view_as(StandardOptions).runner or ""
    local = [path for path in paths if not is_remote(path)]
    if "dataflow" in runner.lower() and local:
        raise UserError(f"Dataflow's workers do not reach {local[0]}: give gs:// folders")


def _run(build: Build, options: PipelineOptions, report: Callable[[str], None]) -> None:
    """Writes the missing shards of a store, then its index."""
    failure = as_path(build.directory) / FAILURE
    failure.unlink(missing_ok=True)
    files, begin = len(build.sizes), time.monotonic()
    pipeline = pipeline_of(build, options)
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except RuntimeError as error:
        # A runner passes on only the text of a worker's error.
        last = str(error).strip().splitlines()[-1]
        if "OSError" not in last:
            raise
        raise UserError(
            f"cannot write the store {build.directory}: {last}; fix that and start again"
        ) from error
    seconds = max(time.monotonic() - begin, 1e-9)
    written, tokens, read = (_count(result, name) for name in ("files", "tokens", "input bytes"))
    report(
        f"{build.task.name}/{build.task.split}: {written:,} of {files:,} files made, "
        f"{tokens:,} tokens, {read / seconds / 1e6:.2f} MB/s read, {tokens / seconds:,.0f} tokens/s"
    )
    if failure.exists():
        reason = json.loads(failure.read_bytes())["error"]
        failure.unlink()
        raise UserError(reason)


def pipeline_of(build: Build, options: PipelineOptions) -> beam.Pipeline:
    """Returns the pipeline that builds a store, not yet running.

    Raises:
      UserError: the options' runner refuses them.
    """
    try:
        pipeline = beam.Pipeline(options=options)
    except ValueError as error:
        refusal = " ".join(str(error).split())
        raise UserError(f"Beam refuses its options: {refusal}") from error
    _ = (
        pipeline
        | "files" >> beam.Create(range(len(build.sizes)))
        | "spread" >> beam.Reshuffle()
        | "make shards" >> beam.Map(functools.partial(_write, build))
        | "gather" >> beam.combiners.ToList()
        | "finish" >> beam.Map(functools.partial(_finish, build))
    )
    return pipeline


def _write(build: Build, number: int) -> Outcome:
    """Writes or keeps one shard; runs in a worker."""
    shard = build.kept(number)
    if shard is not None:
        return number, shard
    try:
        shard = build.write(number)
    except UserError as error:
        return number, str(error)
    Metrics.counter(NAMESPACE, "files").inc()
    Metrics.counter(NAMESPACE, "tokens").inc(shard.tokens)
    Metrics.counter(NAMESPACE, "input bytes").inc(shard.source_bytes)
    return number, shard


def _finish(build: Build, outcomes: Sequence[Outcome]) -> None:
    """Writes the index, or the errors; runs in one worker."""
    in_order = [outcome for _, outcome in sorted(outcomes, key=lambda entry: entry[0])]
    errors = [outcome for outcome in in_order if isinstance(outcome, str)]
    try:
        if errors:
            others = f" (and {len(errors) - 1:,} files more)" if len(errors) > 1 else ""
            raise UserError(f"{errors[0]}{others}")
        build.finish([shard for shard in in_order if isinstance(shard, Shard)])
    except UserError as error:
        write_json(as_path(build.directory) / FAILURE, {"error": str(error)})


def _count(result: beam.runners.runner.PipelineResult, name: str) -> int:
    metrics = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE).with_name(name))
    return sum(counter.result for counter in metrics["counters"])
