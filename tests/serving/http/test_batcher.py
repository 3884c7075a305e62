"""Micro-batching: what is computed together, what is refused, what happens to failures."""

from __future__ import annotations

import asyncio
import threading

import pytest

from recpipe.serving.http.batcher import Batcher, ClosedError, QueueFullError


class Doubler:
    """Computation that doubles numbers, keeps its batches, and waits for ``go`` before the first one."""

    def __init__(self) -> None:
        self.batches: list[tuple[object, list[object]]] = []
        self.go = threading.Event()

    def __call__(self, key, payloads):
        assert self.go.wait(10)
        self.batches.append((key, list(payloads)))
        return [2 * payload for payload in payloads]


def batcher(compute, **options) -> Batcher:
    return Batcher(compute, **{"batch_users": 8, "queue_users": 100, **options})


async def started(queue: Batcher, *requests: tuple[object, object]) -> list[asyncio.Task]:
    """Send a request and let it begin, then the others, which wait behind it."""
    tasks = [asyncio.create_task(queue.submit("first", 0))]
    await asyncio.sleep(0.02)
    tasks += [asyncio.create_task(queue.submit(key, payload)) for key, payload in requests]
    await asyncio.sleep(0)
    return tasks


def test_requests_that_wait_are_computed_together_by_key():
    async def run() -> None:
        compute = Doubler()
        queue = batcher(compute)
        tasks = await started(queue, ("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5))
        compute.go.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
        assert compute.batches == [("first", [0]), ("a", [1, 3, 5]), ("b", [2, 4])]
        await queue.close()

    asyncio.run(run())


def test_batches_have_a_largest_size_and_other_keys_get_their_turn():
    async def run() -> None:
        compute, sizes = Doubler(), []
        queue = batcher(compute, batch_users=2, on_batch=lambda users, seconds: sizes.append(users))
        tasks = await started(queue, *[("a", n) for n in range(5)], ("b", 9))
        compute.go.set()
        await asyncio.gather(*tasks)
        assert compute.batches[1:] == [("a", [0, 1]), ("b", [9]), ("a", [2, 3]), ("a", [4])]
        assert sizes == [1, 2, 1, 2, 1]
        await queue.close()

    asyncio.run(run())


def test_a_failing_request_fails_alone():
    def compute(key, payloads):
        if "bad" in payloads:
            raise ValueError(f"{payloads[0] if len(payloads) == 1 else 'several'}")
        return [payload.upper() for payload in payloads]

    async def run() -> None:
        queue = batcher(compute)
        tasks = [asyncio.create_task(queue.submit("key", word)) for word in ("a", "bad", "b")]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == "A" and results[2] == "B"
        assert isinstance(results[1], ValueError) and str(results[1]) == "bad"
        await queue.close()

    asyncio.run(run())


def test_a_full_queue_refuses_and_says_when_to_come_back():
    async def run() -> None:
        compute = Doubler()
        queue = batcher(compute, queue_users=3)
        tasks = await started(queue, ("a", 1), ("a", 2), ("a", 3))
        with pytest.raises(QueueFullError, match="3 users wait") as error:
            await queue.submit("a", 4)
        assert error.value.retry_after >= 1
        compute.go.set()
        await asyncio.gather(*tasks)
        assert await queue.submit("a", 4, users=50) == 8  # an empty queue takes a request of any size
        await queue.close()

    asyncio.run(run())


def test_a_request_that_timed_out_while_it_waited_is_never_computed():
    async def run() -> None:
        compute = Doubler()
        queue = batcher(compute)
        tasks = await started(queue, ("a", 1), ("a", 2))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.submit("a", 3), 0.01)
        compute.go.set()
        await asyncio.gather(*tasks)
        await queue.close()
        assert compute.batches == [("first", [0]), ("a", [1, 2])]
        assert queue.waiting_users == 0

    asyncio.run(run())


def test_closing_finishes_what_waits_and_takes_no_more():
    async def run() -> None:
        compute = Doubler()
        queue = batcher(compute)
        tasks = await started(queue, ("a", 1), ("b", 2))
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError, match="being replaced"):
            await queue.submit("a", 3)
        compute.go.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4]
        await closing

    asyncio.run(run())
