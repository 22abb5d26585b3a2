"""What a server does for as long as it lives outlives an error that nobody foresaw, and /readyz can say so."""

from __future__ import annotations

import asyncio

from nnunet_jobs.predictor_server.background_tasks import BackgroundTask


def test_fault_67_a_duty_is_tried_again_after_an_error_that_nobody_foresaw() -> None:
    said: list[list[str]] = []
    rounds = 0

    async def act() -> None:
        nonlocal rounds
        rounds += 1
        said.append(background.words())
        if rounds < 3:
            raise KeyError("selection")

    background = BackgroundTask("load the models", act, every_s=0.001, once=True)
    asyncio.run(background.run())
    assert said == [[], *[["load the models: bug; the server's log has the reason"]] * 2]
    assert (background.done, background.alive, background.words()) == (True, True, [])


def test_a_task_that_has_ended_before_its_time_is_no_longer_alive() -> None:
    async def act() -> None:
        return

    background = BackgroundTask("follow promotions", act, every_s=0.001)

    async def run() -> None:
        running = asyncio.ensure_future(background.run())
        await asyncio.sleep(0)
        assert background.alive
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert not background.alive


def test_what_a_round_has_dealt_with_is_shown_too() -> None:
    async def act() -> None:
        return

    background = BackgroundTask("follow promotions", act, every_s=0.001, problems=lambda: {"Dataset004_Test": "cannot be loaded"})
    assert background.words() == ["follow promotions: Dataset004_Test: cannot be loaded"]
