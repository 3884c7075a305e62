"""Micro-batching: requests that wait at the same time and have the same key are computed in one call.

Every model has a `Batcher` with one thread. While a batch is computed, further requests queue up and become the next
one, so that the size of the batches follows the load and an idle service answers at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Compute = Callable[[Any, Sequence[Any]], Sequence[Any]]
"""(key, payloads) -> one result per payload; called in the thread of the batcher."""
RATE_WEIGHT = 0.2  # of the newest batch in the moving average of users per second


class QueueFullError(ValueError):
    """No place in the queue of a model; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(ValueError):
    """The batcher takes no more requests."""


@dataclass
class _Job:
    payload: Any
    users: int
    result: asyncio.Future[Any] = field(repr=False)


class Batcher(Generic[Key]):
    """Queue and thread of one model. All methods belong to one event loop.

    ``compute``: see `Compute`. ``batch_users``: users of a batch, unless a single request has more. ``queue_users``:
    users that may wait. ``on_batch``: called with the number of users of each batch and its seconds.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        batch_users: int,
        queue_users: int,
        name: str = "model",
        on_batch: Callable[[int, float], None] = lambda users, seconds: None,
    ) -> None:
        self.name, self.waiting_users = name, 0
        self._compute, self._on_batch = compute, on_batch
        self._batch_users, self._queue_users = batch_users, queue_users
        self._queues: dict[Key, deque[_Job]] = {}  # the key whose turn it is comes first
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"recpipe-{name}")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._users_per_second = 0.0

    async def submit(self, key: Key, payload: Any, *, users: int = 1) -> Any:
        """Return the result of one request. A cancelled call that still waits is never computed.

        Raises QueueFullError, ClosedError, and whatever the computation raises for this payload alone.
        """
        if self._closed:
            raise ClosedError(f"{self.name} is being replaced or the service is stopping; send the request again")
        if self.waiting_users and self.waiting_users + users > self._queue_users:
            raise QueueFullError(
                f"{self.waiting_users} users wait for {self.name}, at most {self._queue_users} may; send the request "
                "again later, or raise serve.queue_users",
                self._retry_after(),
            )
        job = _Job(payload, users, asyncio.get_running_loop().create_future())
        self._queues.setdefault(key, deque()).append(job)
        self.waiting_users += users
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await job.result

    async def close(self) -> None:
        """Take no more requests, finish those that wait, and end the thread."""
        self._closed = True
        while self._worker is not None:
            await asyncio.wait([self._worker])
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        """Compute batches until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._queues:
                key, jobs = self._next_batch()
                if not jobs:
                    continue
                started = loop.time()
                payloads = [job.payload for job in jobs]
                outcomes = await loop.run_in_executor(self._thread, _compute_each, self._compute, key, payloads)
                for job, outcome in zip(jobs, outcomes, strict=True):
                    _set_outcome(job.result, outcome)
                self._observe(sum(job.users for job in jobs), loop.time() - started)
        finally:
            self._worker = None

    def _next_batch(self) -> tuple[Key, list[_Job]]:
        """Remove jobs of the first key, at most ``batch_users`` users; a key with further jobs goes to the end."""
        key = next(iter(self._queues))
        queue, users = self._queues.pop(key), 0
        jobs: list[_Job] = []
        while queue and (not jobs or users + queue[0].users <= self._batch_users):
            job = queue.popleft()
            self.waiting_users -= job.users
            if not job.result.done():  # cancelled by a timeout
                jobs.append(job)
                users += job.users
        if queue:
            self._queues[key] = queue
        return key, jobs

    def _observe(self, users: int, seconds: float) -> None:
        rate = users / max(seconds, 1e-6)
        self._users_per_second += (RATE_WEIGHT if self._users_per_second else 1.0) * (rate - self._users_per_second)
        self._on_batch(users, seconds)

    def _retry_after(self) -> int:
        """Seconds until the queue is empty at the present speed, from 1 to 60."""
        if not self._users_per_second:
            return 1
        return min(max(round(self.waiting_users / self._users_per_second), 1), 60)


def _compute_each(compute: Compute, key: Any, payloads: Sequence[Any]) -> list[Any]:
    """Compute a batch; where it fails, each request alone, so that a request fails for itself only."""
    try:
        results = list(compute(key, payloads))
        if len(results) != len(payloads):
            raise RuntimeError(f"{len(payloads)} requests have {len(results)} results")
        return results
    except Exception as error:
        if len(payloads) == 1:
            return [_Failure(error)]
        log.debug("a batch of %s requests failed, each is computed alone: %s", len(payloads), error)
    return [_compute_each(compute, key, [payload])[0] for payload in payloads]


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _set_outcome(result: asyncio.Future[Any], outcome: Any) -> None:
    if result.done():
        return
    if isinstance(outcome, _Failure):
        result.set_exception(outcome.error)
    else:
        result.set_result(outcome)
