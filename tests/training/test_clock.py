"""What metrics.jsonl says of speed: compiling is no part of it, and waiting is what the devices do, not the loop."""

import time

import numpy as np
import pytest

from ringrl.training import tracker
from ringrl.training.tracker import Clock


@pytest.fixture
def clock(tiny_config, monkeypatch):
    """A clock of one device, for which what a step returns is the time at which it will be done."""

    def time_of(done: float) -> float:
        time.sleep(max(0.0, done - time.perf_counter()))
        return done

    monkeypatch.setattr(tracker, "_time_of", time_of)
    monkeypatch.setattr(tracker, "peak_flops", lambda: (1e12, True))
    return Clock(tiny_config({"name": "behavior_cloning"}), 1, {"kernel": np.zeros((4, 4), np.float32)}, 1)


def wait(clock: Clock, seconds: float, busy: float) -> None:
    """Wait so long for a batch while the devices have work for so long."""
    with clock.waiting(time.perf_counter() + busy):
        time.sleep(seconds)


def share(clock: Clock, done: int) -> tuple[float, float]:
    """The share waited, and the steps a second."""
    lap = clock.lap(done, done)
    return lap["loader_wait"], lap["tokens_per_s"] / clock._tokens


def test_only_idle_devices_wait(clock):
    wait(clock, 0, 0)
    wait(clock, 0, busy=0.02)
    time.sleep(0.1)
    wait(clock, 0.1, busy=0.3)  # the batch is there before the devices are done
    assert share(clock, 2)[0] == 0
    wait(clock, 0.3, busy=0.15)  # they are idle for half of it
    assert share(clock, 3)[0] == pytest.approx(0.5, abs=0.15)
    wait(clock, 0.2, busy=-1)
    assert share(clock, 4)[0] == pytest.approx(1, abs=0.15)


def test_compiling_is_not_counted(clock):
    wait(clock, 0, 0)
    time.sleep(0.5)  # the first step is compiled
    for _ in range(2):
        wait(clock, 0, 0)
        time.sleep(0.1)
    assert share(clock, 3)[1] == pytest.approx(10, rel=0.3)


def test_the_first_step_is_not_counted(clock):
    """Three steps that are dispatched at once, of which the devices have the first done after 0.3 s."""
    first = time.perf_counter() + 0.3
    for done in (0, first, first + 0.1):
        with clock.waiting(done):
            pass
    time.sleep(first + 0.2 - time.perf_counter())
    waited, steps_per_s = share(clock, 3)
    assert steps_per_s == pytest.approx(10, rel=0.3)
    assert waited == 0


def test_a_line_after_the_first_step_has_no_other_to_tell_of(clock):
    wait(clock, 0, 0)
    time.sleep(0.2)
    assert share(clock, 1)[1] == pytest.approx(5, rel=0.3)
    wait(clock, 0, 0)
    time.sleep(0.1)
    assert share(clock, 2)[1] == pytest.approx(10, rel=0.3)


def test_the_utilisation_counts_what_is_visible(clock):
    """With all of a row one context there are more pairs than where it holds many; a lap forgets the last one's."""
    steps = clock._steps
    whole = {"position": np.arange(steps, dtype=np.int32)[None], "segment_ids": np.ones((1, steps), np.int32)}
    apart = {"position": np.zeros((1, steps), np.int32), "segment_ids": np.arange(1, steps + 1, dtype=np.int32)[None]}
    flops = []
    for done, batch in enumerate((whole, apart, whole), 1):
        clock.count(batch)
        lap = clock.lap(done, done)
        flops.append(lap["mfu"] / lap["tokens_per_s"])
    assert flops[0] == pytest.approx(flops[2], rel=1e-9)
    assert flops[1] < flops[0]
