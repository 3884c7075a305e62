"""Load generator for benchmarks/serving.py, a process of its own: clients on raw sockets, and the check of the lists.

Prints one line of JSON: requests per second, latencies, errors, and answers that are not the lists of ``recommend``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

K = 10
HEAD_END = b"\r\n\r\n"
KEPT = 20_000  # answers that are compared


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second; 0: as fast as answers come")
    parser.add_argument("--layout", default="recpipe", choices=("recpipe", "mlflow", "litserve"))
    print(json.dumps(measure_load(parser.parse_args())))


def users_of(model: Path) -> dict[str, list[str]]:
    """Histories of the test fold beside a model's folder, with external ids."""
    from recpipe.data.sequences import Fold, Vocabulary

    inputs = model.parents[1].parent / "05_model_input" / model.parent.name
    histories = Fold.read(inputs / "test_set.arrow").histories
    ids = Vocabulary.read(inputs / "vocabulary.parquet").ids
    rng = np.random.default_rng(0)
    users = rng.permutation(len(histories))[:3000]
    return {str(histories.users[user]): ids[histories.row(user) - 1].tolist() for user in users}


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99))}


class Client(asyncio.Protocol):
    """One connection that sends requests one after the other and keeps seconds, status and bodies of the answers."""

    def __init__(self, run: LoadRun) -> None:
        self.run, self.buffer, self.missing = run, bytearray(), -1
        self.request, self.started = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request of this connection."""
        self.transport = transport
        self.run.next(self)

    def send(self, request: int, scheduled: float) -> None:
        """Send a request whose time counts from ``scheduled``."""
        self.request, self.started = request, scheduled
        self.transport.write(self.run.requests[request])  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Collect an answer, and report it when it is complete."""
        self.buffer += data
        if self.missing < 0:
            end = self.buffer.find(HEAD_END)
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.missing = end + len(HEAD_END) + length
        if len(self.buffer) >= self.missing:
            body, ok = bytes(self.buffer), self.buffer.startswith(b"HTTP/1.1 200")
            self.buffer, self.missing = bytearray(), -1
            self.run.done(self, ok, body)

    def connection_lost(self, _: Exception | None) -> None:
        """Report the request in progress as failed."""
        self.run.lost(self)


class LoadRun:
    """Load of several clients: as fast as they get answers, or at ``rate`` requests per second."""

    def __init__(self, requests: list[bytes], seconds: float, rate: float) -> None:
        self.requests, self.rate, self.sent = requests, rate, 0
        self.begin = time.perf_counter()
        self.end = self.begin + seconds
        self.seconds: list[float] = []
        self.answers: list[tuple[int, bytes]] = []
        self.errors, self.open = 0, 0
        self.finished = asyncio.Event()

    def next(self, client: Client) -> None:
        """Send the next request of a client, at its time."""
        now = time.perf_counter()
        scheduled = self.begin + self.sent / self.rate if self.rate else now
        if max(now, scheduled) >= self.end:
            client.transport.close()
            return
        number = self.sent % len(self.requests)
        self.sent += 1
        if scheduled > now:
            asyncio.get_running_loop().call_later(scheduled - now, client.send, number, scheduled)
        else:
            client.send(number, scheduled)

    def done(self, client: Client, ok: bool, body: bytes) -> None:
        """Count an answer."""
        self.seconds.append(time.perf_counter() - client.started)
        self.errors += not ok
        if len(self.answers) < KEPT and ok:
            self.answers.append((client.request, body))
        self.next(client)

    def lost(self, client: Client) -> None:
        """Count a connection that is gone."""
        self.open -= 1
        if not self.open:
            self.finished.set()


def measure_load(arguments: argparse.Namespace) -> dict[str, float]:
    """Send requests of all users in turn; compare the lists afterwards."""
    import uvloop

    users = users_of(arguments.model)
    requests = [encoded(user, items, arguments.layout) for user, items in users.items()]
    print("begin", flush=True)
    run = uvloop.run(load(requests, arguments))
    seconds = np.array(run.seconds)
    duration = max(time.perf_counter() - run.begin, 1e-9) if arguments.rate == 0 else arguments.seconds
    wrong = count_wrong(arguments, users, run.answers)
    return {"rate": len(seconds) / duration, **percentiles(seconds), "errors": run.errors, "wrong": wrong}


async def load(requests: list[bytes], arguments: argparse.Namespace) -> LoadRun:
    """Run all clients until the time is over or all connections are lost."""
    loop = asyncio.get_running_loop()
    run = LoadRun(requests, arguments.seconds, arguments.rate)
    for _ in range(arguments.clients):
        run.open += 1
        await loop.create_connection(lambda: Client(run), "127.0.0.1", arguments.port)
    await run.finished.wait()
    return run


def encoded(user: str, items: list[str], layout: str) -> bytes:
    """A request in bytes."""
    if layout == "mlflow":
        path = "/invocations"
        content: dict[str, Any] = {"dataframe_split": {"columns": ["user_id", "items"], "data": [[user, items]]}}
        content["params"] = {"k": K}
    else:
        path, content = "/recommend", {"user_id": user, "items": items, "k": K}
    body = json.dumps(content).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def count_wrong(arguments: argparse.Namespace, users: dict[str, list[str]], answers: list[tuple[int, bytes]]) -> int:
    """Count answers whose scores differ from those of ``recommend``; equal scores may change places."""
    if arguments.layout != "recpipe" or not answers:
        return 0
    import recpipe

    model, names = recpipe.load_bundle(arguments.model), list(users)
    expected: dict[str, dict[str, float]] = {name: {} for name in names}
    table = model.recommend(users, 2 * K)
    rows = (table[name].to_pylist() for name in ("user_id", "item_id", "score"))
    for user, item, score in zip(*rows, strict=True):
        expected[user][item] = score
    wrong = 0
    for number, answer in answers:
        (entry,) = json.loads(answer.partition(HEAD_END)[2])["lists"]
        scores, items = expected[names[number]], entry["items"]
        right = entry["user_id"] == names[number] and len(items) == min(K, len(scores))
        right &= all(abs(scores.get(item["item_id"], np.inf) - item["score"]) < 1e-3 for item in items)
        best = sorted(scores.values(), reverse=True)[:K]
        right &= bool(np.allclose([item["score"] for item in items], best, atol=1e-3))
        wrong += not right
    return wrong


if __name__ == "__main__":
    main()
