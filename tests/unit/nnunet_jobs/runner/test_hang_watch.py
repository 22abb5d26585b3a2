"""The hang watch: silence is measured in epochs and on its own clock."""

from __future__ import annotations

from nnunet_jobs.runner.hang_watch import HangWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pass_silence(watch: HangWatch, clock: Clock, seconds: int, counter: int = 7) -> bool:
    hangs = False
    for _ in range(seconds):
        clock.now += 1
        hangs = watch.look(counter, [])
    return hangs


def test_without_epochs_the_floor_counts() -> None:
    clock = Clock()
    watch = HangWatch(300, clock=clock)
    watch.look(7, [])
    assert not pass_silence(watch, clock, 299)
    assert pass_silence(watch, clock, 1)


def test_long_epochs_stretch_the_limit() -> None:
    clock = Clock()
    watch = HangWatch(300, clock=clock)
    counter = 0
    for epoch in range(5):
        for _ in range(100):  # beats within an epoch of 100 s
            clock.now += 1
            counter += 1
            watch.look(counter, [])
        watch.look(counter, [{"phase": "train", "done": epoch}])
    assert watch.limit_s == 1000
    assert not pass_silence(watch, clock, 999, counter)
    assert pass_silence(watch, clock, 1, counter)


def test_records_of_other_kinds_are_signs_of_life_but_no_epochs() -> None:
    clock = Clock()
    watch = HangWatch(10, clock=clock)
    for _ in range(100):
        clock.now += 5
        assert not watch.look(1, [{"phase": "wait"}])
    assert watch.limit_s == 10


def test_a_watcher_that_slept_does_not_take_its_sleep_for_a_hang() -> None:
    clock = Clock()
    watch = HangWatch(300, clock=clock)
    watch.look(7, [])
    clock.now += 100_000
    assert not watch.look(7, [])


def test_any_change_of_the_counter_is_a_sign_of_life() -> None:
    """A restarted step counts from zero again."""
    clock = Clock()
    watch = HangWatch(10, clock=clock)
    watch.look(500, [])
    pass_silence(watch, clock, 9, 500)
    clock.now += 1
    assert not watch.look(1, [])
    assert watch.silent_s == 0
