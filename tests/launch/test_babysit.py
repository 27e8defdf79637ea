"""`babysit` on both services, against a fake gcloud and a clock of its own."""

import dataclasses

import pytest

from prts_jax.errors import StorageError, UserError
from prts_jax.launch import babysit, record, rent, workers
from prts_jax.launch.attempts import Limits
from prts_jax.launch.babysit import Watch
from prts_jax.launch.settings import Settings
from tests.launch.fake_gcloud import FakeCloud

CODE = "gs://bkt/grown/code/abc.tar.gz"
COMMON = {"name": "grown", "project": "p", "bucket": "gs://bkt"}
SETTINGS = {
    "queued": Settings(**COMMON, zone="us-west4-a", accelerator="v5litepod-16"),
    "mig": Settings(**COMMON, zone="us-east5-a", accelerator="v5p-32"),
}
STATE = "gs://bkt/grown/launch/babysit.json"
both = pytest.mark.parametrize("service", SETTINGS)


class Run:
    """A babysitter with a clock that moves only while it sleeps."""

    def __init__(self, service: str, cloud: FakeCloud, limits: Limits | None = None, **more):
        job = workers.Job("gs://bkt/grown", ("--config=x.py",))
        source = workers.Source(CODE)
        self.watch = Watch(SETTINGS[service], job, source, lambda: CODE, limits or Limits(), **more)
        self.cloud, self.time, self.lines, self.stop_at = cloud, 1e9, [], 1e12

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.time > self.stop_at:
            raise KeyboardInterrupt

    def go(self) -> int:
        return babysit.babysit(
            self.watch, self.cloud, lambda: self.time, self.sleep, self.lines.append
        )

    def attempts(self) -> int:
        return len(self.cloud.scripts)


HAPPY = {
    "queued": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "exit 0", "ACTIVE"],
    "mig": [
        "CREATING: ZONE_RESOURCE_POOL_EXHAUSTED none left",
        "CREATING",
        "ACTIVE",
        "exit 0",
        "ACTIVE",
    ],
}


@both
def test_a_run_is_waited_for_watched_and_deleted_when_done(service):
    run = Run(service, FakeCloud([list(HAPPY[service])]), delete_when_done=True)
    assert run.go() == 0
    states = [line.split("→")[-1].split()[0] for line in run.lines if "→" in line]
    assert states == ["WAITING", "PROVISIONING", "ACTIVE"]
    assert run.attempts() == 1
    assert run.cloud.resources == []
    assert run.lines[-2].endswith("attempt 1 is finished")


@both
def test_slices_of_a_finished_run_stay_unless_asked(service):
    run = Run(service, FakeCloud([list(HAPPY[service])]))
    assert run.go() == 0
    assert run.cloud.resources


LOSSES = {
    "queued suspended": ("queued", ["ACTIVE", "SUSPENDED"], "SUSPENDED"),
    "queued failed": (
        "queued",
        ["WAITING_FOR_RESOURCES", "FAILED: Quota exceeded"],
        "Quota exceeded",
    ),
    "mig lost a member": ("mig", ["CREATING", "ACTIVE", "LOST"], "3 of 4 hosts run"),
    "mig has no quota": ("mig", ["CREATING: QUOTA_EXCEEDED Quota TPUS exceeded"], "QUOTA_EXCEEDED"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_lost_slices_are_deleted_and_rented_again_with_a_new_attempt(case):
    service, timeline, reason = LOSSES[case]
    run = Run(service, FakeCloud([timeline, ["ACTIVE", "exit 0", "ACTIVE"]]))
    assert run.go() == 0
    assert run.attempts() == 2
    assert any(reason in line and "retry 1" in line for line in run.lines)
    first, second = run.cloud.scripts
    assert "PRTS_ATTEMPT=1\n" in first
    assert "PRTS_ATTEMPT=2\n" in second
    assert nonce(first) != nonce(second)
    assert "PRTS_HOSTS=4\n" in second


def nonce(script: str) -> str:
    return script.partition("PRTS_NONCE=")[2].partition("\n")[0]


@both
def test_a_launch_that_fails_is_retried_with_growing_pauses_until_the_limit(service):
    cloud = FakeCloud([["ACTIVE"]], failures=[["create", "RESOURCE_EXHAUSTED: out of stock", 99]])
    run = Run(service, cloud, Limits(retries=3))
    assert run.go() == 75
    pauses = [line.partition("again in ")[2].partition(" s")[0] for line in run.lines]
    assert list(filter(None, pauses)) == ["60", "120", "240"]
    assert "stopped at 3 retries" in run.lines[-2]
    assert cloud.resources == []


@both
def test_a_launch_that_gcloud_refuses_ends_at_once(service):
    cloud = FakeCloud(failures=[["create", "PERMISSION_DENIED: ask your administrator", 99]])
    run = Run(service, cloud)
    assert run.go() == 2
    assert "ask your administrator" in run.lines[-2]
    assert cloud.resources == []


@both
def test_exit_code_75_of_the_job_is_retried_and_2_is_not(service):
    cloud = FakeCloud([["ACTIVE", "exit 75", "ACTIVE"], ["ACTIVE", "exit 2", "ACTIVE"], ["ACTIVE"]])
    run = Run(service, cloud)
    assert run.go() == 2
    assert run.attempts() == 2
    assert "exit code 75" in "".join(run.lines)
    assert "mistake" in run.lines[-1]


def test_a_job_that_has_diverged_is_not_rented_again_until_a_new_start_with_new_code():
    cloud = FakeCloud([["ACTIVE", "exit 1 diverged", "ACTIVE"], ["ACTIVE", "exit 0", "ACTIVE"]])
    run = Run("queued", cloud)
    run.watch = dataclasses.replace(run.watch, source=None)
    assert run.go() == 1
    assert run.attempts() == 1
    assert "has diverged" in run.lines[-1]
    assert cloud.resources
    assert "exit code 1, diverged" in record.report(run.watch.job, cloud)[0]
    corrected = "gs://bkt/grown/code/corrected.tar.gz"
    run.watch = dataclasses.replace(run.watch, pack=lambda: corrected)
    assert run.go() == 0
    assert corrected in cloud.scripts[1]


@pytest.mark.parametrize(
    ("limits", "named"),
    [(Limits(hours=5), "5 hours"), (Limits(cost=100, price=2.0), "a cost of 100")],
)
@both
def test_limits_end_the_run_and_its_cost(service, limits, named):
    run = Run(service, FakeCloud([["ACTIVE"]]), limits)
    assert run.go() == 75
    assert any(named in line for line in run.lines)
    assert run.cloud.resources == []
    hours = (run.time - 1e9) / 3600
    assert hours == pytest.approx(5 if limits.hours else 100 / (16 * 2), abs=0.05)


@both
def test_a_killed_babysit_starts_again_where_it_was(service):
    run = Run(service, FakeCloud([["ACTIVE"]]))
    run.stop_at = run.time + 600
    with pytest.raises(KeyboardInterrupt):
        run.go()
    run.cloud.timelines = [["ACTIVE", "exit 0", "ACTIVE"]]
    run.stop_at = 1e12
    assert run.go() == 0
    assert run.attempts() == 1, "the slices that run are kept"
    assert run.go() == 0, "a finished run stays finished"
    assert run.attempts() == 1


@both
def test_a_finished_run_whose_babysit_was_killed_is_deleted_at_the_next_start(service):
    run = Run(service, FakeCloud([["ACTIVE", "exit 0", "ACTIVE"]]))
    assert run.go() == 0
    assert run.cloud.resources
    run.watch = dataclasses.replace(run.watch, delete_when_done=True)
    assert run.go() == 0
    assert run.cloud.resources == []
    assert run.attempts() == 1


def test_slices_that_somebody_deleted_are_rented_again_and_may_start_one_host_after_the_other():
    cloud = FakeCloud([["ACTIVE"], ["LOST", "LOST", "ACTIVE", "exit 0", "ACTIVE"]])
    run = Run("mig", cloud)
    run.stop_at = run.time + 100
    with pytest.raises(KeyboardInterrupt):
        run.go()
    rent.release(run.watch.settings, cloud)
    run.stop_at = 1e12
    assert run.go() == 0
    assert run.attempts() == 2


@pytest.mark.parametrize(("end", "attempts"), [("ACTIVE", 1), ("EMPTY", 2)])
def test_an_empty_flex_start_group_is_waited_for_and_rented_again_when_its_time_is_over(
    end, attempts
):
    timeline = [*["EMPTY"] * 100, "ACTIVE", end, "exit 0", "ACTIVE"]
    run = Run("mig", FakeCloud([timeline, ["ACTIVE", "exit 0", "ACTIVE"]]))
    settings = dataclasses.replace(run.watch.settings, provisioning="flex_start")
    run.watch = dataclasses.replace(run.watch, settings=settings)
    assert run.go() == 0
    assert run.time > 1e9 + 100 * 60
    assert run.attempts() == attempts


def test_a_changed_command_or_a_new_start_after_a_mistake_is_a_new_attempt():
    cloud = FakeCloud([["ACTIVE", "exit 2", "ACTIVE"], ["ACTIVE", "exit 0", "ACTIVE"]])
    run = Run("queued", cloud)
    assert run.go() == 2
    assert run.go() == 0
    assert run.attempts() == 2
    job = dataclasses.replace(run.watch.job, arguments=("--config=y.py",))
    run.watch = dataclasses.replace(run.watch, job=job)
    cloud.timelines = [["ACTIVE"], ["ACTIVE", "exit 0", "ACTIVE"]]
    assert run.go() == 0
    assert "--config=y.py" in cloud.scripts[2]


def test_later_attempts_run_the_code_of_the_first_one():
    cloud = FakeCloud([["SUSPENDED"], ["ACTIVE"]])
    run = Run("queued", cloud)
    run.watch = dataclasses.replace(run.watch, source=None)
    run.stop_at = run.time + 30
    with pytest.raises(KeyboardInterrupt):
        run.go()
    run.watch = dataclasses.replace(run.watch, pack=lambda: "gs://bkt/grown/code/newer.tar.gz")
    cloud.timelines[-1] = ["ACTIVE", "exit 0", "ACTIVE"]
    run.stop_at = 1e12
    assert run.go() == 0
    assert all(CODE in script for script in cloud.scripts)


@both
def test_slices_that_it_has_not_rented_are_left_alone(service):
    cloud = FakeCloud()
    rent.rent(SETTINGS[service], "#", cloud)
    before = list(cloud.resources)
    with pytest.raises(UserError, match="has not rented"):
        Run(service, cloud).go()
    assert cloud.resources == before


@both
def test_a_workdir_of_other_slices_is_refused_and_nothing_is_deleted(service):
    cloud = FakeCloud([["ACTIVE"]])
    run = Run(service, cloud)
    babysit.launch(run.watch, cloud, run.time)
    other = dataclasses.replace(run.watch.settings, name="other")
    rent.rent(other, "#", cloud)
    before = list(cloud.resources)
    for arguments in (run.watch.job.arguments, ("--config=y.py",)):
        job = dataclasses.replace(run.watch.job, arguments=arguments)
        run.watch = dataclasses.replace(run.watch, settings=other, job=job)
        with pytest.raises(UserError, match=r"is the state of grown in .*, not of other in"):
            run.go()
    assert cloud.resources == before


def test_a_second_babysit_takes_over_and_the_first_ends():
    cloud = FakeCloud([["ACTIVE"]])
    first = Run("queued", cloud)
    sleep = first.sleep

    def other_starts(seconds: float) -> None:
        sleep(seconds)
        second = Run("queued", cloud)
        second.stop_at = 0
        with pytest.raises(KeyboardInterrupt):
            second.go()

    first.sleep = other_starts
    with pytest.raises(UserError, match="another babysit"):
        first.go()


def test_an_outage_of_gcloud_is_waited_for():
    outage = [["describe", "503 Service Unavailable", 3], ["babysit.json", "503", 0]]
    cloud = FakeCloud([["ACTIVE", "ACTIVE", "ACTIVE", "exit 0", "ACTIVE"]], failures=outage)
    run = Run("queued", cloud)
    assert run.go() == 0
    assert "UNKNOWN" in run.lines[0]
    assert run.attempts() == 1


def test_a_bucket_that_is_away_is_waited_for_but_not_at_the_start():
    cloud = FakeCloud([["ACTIVE"]], failures=[["babysit.json", "503 Service Unavailable", 1]])
    run = Run("queued", cloud)
    with pytest.raises(StorageError, match="503"):
        run.go()
    sleep = run.sleep

    def sleep_and_fail(seconds: float) -> None:
        sleep(seconds)
        if run.time == 1e9 + 120:
            cloud.failures[0][2] = 2
        if run.time == 1e9 + 600:
            cloud.timelines = [["exit 0", "ACTIVE"]]

    run.sleep = sleep_and_fail
    assert run.go() == 0
    assert run.attempts() == 1


def test_create_launches_once_and_babysit_watches_it_afterwards():
    cloud = FakeCloud([["ACTIVE", "ACTIVE", "exit 0", "ACTIVE"]])
    run = Run("mig", cloud)
    assert babysit.launch(run.watch, cloud, run.time) == ""
    with pytest.raises(UserError, match="exists"):
        babysit.launch(run.watch, cloud, run.time)
    assert run.go() == 0
    assert run.attempts() == 1


@both
def test_create_deletes_nothing_while_gcloud_does_not_say_what_exists(service):
    cloud = FakeCloud([["ACTIVE"]])
    run = Run(service, cloud)
    rent.rent(run.watch.settings, "#", cloud)
    before = list(cloud.resources)
    for words in ("describe", "list-instances"):
        cloud.failures.append([words, "503 Service Unavailable", 1])
    with pytest.raises(StorageError, match="503"):
        babysit.launch(run.watch, cloud, run.time)
    assert cloud.resources == before


def test_create_during_the_pause_before_a_retry_is_a_new_attempt():
    cloud = FakeCloud([["SUSPENDED"], ["ACTIVE", "exit 0", "ACTIVE"]])
    run = Run("queued", cloud, Limits(backoff_seconds=600))
    run.stop_at = run.time + 130
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert cloud.resources == []
    babysit.launch(run.watch, cloud, run.time)
    assert nonce(cloud.scripts[0]) != nonce(cloud.scripts[1])
    assert "PRTS_ATTEMPT=2\n" in cloud.scripts[1]


@both
def test_deleting_removes_everything_and_may_be_repeated(service):
    cloud = FakeCloud()
    settings = dataclasses.replace(SETTINGS[service], slices=3)
    assert rent.rent(settings, "#", cloud).code == 0
    assert rent.release(dataclasses.replace(settings, slices=1), cloud) > 0
    assert cloud.resources == []
    assert rent.release(settings, cloud) == 0
    unknown = dataclasses.replace(settings, accelerator="")
    rent.rent(settings, "#", cloud)
    rent.release(unknown, cloud)
    assert cloud.resources == [], "without an accelerator both services are emptied"


def test_a_deletion_that_fails_says_that_it_may_cost_money():
    cloud = FakeCloud(failures=[["delete", "503", 1]])
    rent.rent(SETTINGS["mig"], "#", cloud)
    with pytest.raises(StorageError, match="cost money"):
        rent.release(SETTINGS["mig"], cloud)
    rent.release(SETTINGS["mig"], cloud)
    assert cloud.resources == []
