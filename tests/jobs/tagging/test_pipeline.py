"""The actor between tasks and driver: many questions, one commit. No Ray."""

from __future__ import annotations

import asyncio

import pytest

from jobs.core.errors import WorkStoppedError
from jobs.tagging.job_log import Begin
from jobs.tagging.pipeline import AttemptsActor


def _question(number: int) -> Begin:
    return Begin(str(number), "run", number)


def test_questions_are_answered_together() -> None:
    async def talk() -> list[int]:
        actor = AttemptsActor()
        assert await actor.asked(0.01) == []
        tasks = [asyncio.create_task(actor.begin(_question(number))) for number in range(3)]
        asked = await actor.asked(1.0)
        late = asyncio.create_task(actor.begin(_question(9)))
        await asyncio.sleep(0)
        assert asked == [_question(number) for number in range(3)]
        await actor.answer([one.video_id * 10 for one in asked])
        assert [one.video_id for one in await actor.asked(1.0)] == [9]
        await actor.answer([5])
        return [*await asyncio.gather(*tasks), await late]

    assert asyncio.run(talk()) == [0, 10, 20, 5]


def test_whoever_waits_learns_that_the_job_has_lost_its_output() -> None:
    async def talk() -> None:
        actor = AttemptsActor()
        waiting = asyncio.create_task(actor.begin(_question(1)))
        await actor.asked(1.0)
        await actor.refuse("another job has taken over")
        for late in (waiting, actor.begin(_question(2))):
            with pytest.raises(WorkStoppedError, match="another job has taken over"):
                await late

    asyncio.run(talk())
