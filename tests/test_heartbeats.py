"""Heartbeats of hosts: lines of a file, their state by age, their table."""

import dataclasses

import pytest

from prts_jax.heartbeats import Beat, host_table, parse
from prts_jax.text_table import render

BEAT = Beat(0, "w-0", 1000.0, 40, 995.0, 0.5, 0.01, False, 2**30, 3 * 2**29, 2**34)


def test_lines_are_read_in_order_of_hosts_and_damaged_ones_left_out():
    other = dataclasses.replace(BEAT, host=1, hbm_bytes=None, ended=True)
    text = other.to_json() + '{"host": 2}\n[1]\nno JSON\n' + BEAT.to_json().replace("1000.0", '"x"')
    text += "".join(BEAT.to_json().replace(number, "null") for number in ("1000.0", "40", "995.0"))
    assert parse(text + BEAT.to_json()) == [BEAT, other]


@pytest.mark.parametrize(
    ("changes", "now", "state"),
    [
        ({}, 1001, "running"),
        ({}, 1130, "silent"),
        ({"stepped": 600.0}, 1001, "stands still"),
        ({"stepped": 600.0, "step_seconds": 60.0}, 1001, "running"),
        ({"ended": True}, 9000, "ended"),
    ],
)
def test_the_ages_of_beat_and_step_tell_the_state(changes, now, state):
    assert dataclasses.replace(BEAT, **changes).state(now) == state


def test_the_table_has_a_row_a_host():
    rows = render(host_table([("a", BEAT), ("b", Beat(1, "w\n1", 940.0, 40, 700.0))], now=1000.0))
    one, other = (" ".join(row.split()) for row in rows.splitlines()[-2:])
    assert one == "a 0 w-0 running 40 5 s 0 s 0.5000 0.0100 1.00 GiB 1.50 GiB 16.00 GiB"
    assert other == "b 1 w?1 running 40 5 min 00 s 1 min 00 s – – – – –"
