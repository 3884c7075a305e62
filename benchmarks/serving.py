"""HTTP service beside the same bundle in Python: users per second, latencies, memory, and a restart after kill -9.

Every client waits for its answer before it sends the next request, except at half load, where requests are sent at a
fixed rate. The load generator is a process of its own, and reads histories of real users, those of the test fold. Lists
are compared with those of ``recommend``. Ratios are of one run; the cores that other processes used stand beside them.

python benchmarks/serving.py                                 # sasrec of Online Retail, after `kedro run`
python benchmarks/serving.py --minutes 10                    # half load for ten minutes
python benchmarks/serving.py --mlflow models:/online_retail-sasrec@champion
python benchmarks/serving.py --litserve                      # needs `pip install litserve`
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from harness import NOT_INSTALLED, OtherLoad, command_line, generated_data, run_alone, train_on_generated
from http_load import K, percentiles, users_of

BATCH = 64
LOAD = str(Path(__file__).with_name("http_load.py"))


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = command_line(__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/06_models/online_retail/sasrec"))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=0.5, help="of half load")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mlflow", metavar="URI", help="the same bundle in the registry, for mlflow models serve")
    parser.add_argument("--litserve", action="store_true", help="the same bundle served by LitServe")
    parser.add_argument("--measure", choices=("recommend",), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure_recommend(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.quick:
            quick_settings(arguments, Path(folder))
        compare(arguments)


def quick_settings(arguments: argparse.Namespace, folder: Path) -> None:
    """Train on generated data, and measure for a moment."""
    data = generated_data(folder / "data", "online_retail")
    train_on_generated(data, "online_retail", "sasrec", {"train": {"max_epochs": 1}})
    arguments.model = data / "06_models" / "online_retail" / "sasrec"
    arguments.clients, arguments.seconds, arguments.minutes, arguments.threads = 4, 0.5, 0.01, 1


def compare(arguments: argparse.Namespace) -> None:
    """Measure all rows and print them."""
    load = OtherLoad()
    common = ["--model", str(arguments.model.resolve()), "--seconds", str(arguments.seconds)]
    direct = measure("recommend", common, arguments.threads)
    print(f"{arguments.model}, {arguments.threads} threads, k {K}, {arguments.clients} clients")
    print(f"{'':34} {'users/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'errors':>7} {'wrong':>6}  beside recommend")
    show("recommend, batches of 64", direct["batches"])
    show("recommend, one user", direct["single"])
    with service(arguments) as (port, process):
        idle = run_load(port, common, clients=1, seconds=arguments.seconds / 2)
        show("HTTP, one client", idle, f"p50 x{idle['p50'] / direct['single']['p50']:.2f}")
        full = run_load(port, common, clients=arguments.clients)
        show("HTTP, all clients", full, f"users/s x{full['rate'] / direct['batches']['rate']:.2f}")
        before = memory_mib(process.pid)
        half = run_load(port, common, arguments.clients, seconds=60 * arguments.minutes, rate=full["rate"] / 2)
        grown = memory_mib(process.pid) - before
        show("HTTP, half load", half, f"p99/p50 {half['p99'] / half['p50']:.1f}, memory {grown:+.0f} MiB")
    show_restart(arguments, common)
    if arguments.mlflow:
        with mlflow_service(arguments) as port:
            row = run_load(port, common, clients=arguments.clients, layout="mlflow")
            show("mlflow models serve, all clients", row, f"HTTP is x{full['rate'] / row['rate']:.1f}")
    if arguments.litserve:
        show_litserve(arguments, common, full)
    print(f"cores used by others: {load.cores():.1f}")


def measure(name: str, common: list[str], threads: int) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    output, _ = run_alone([sys.executable, __file__, "--measure", name, *common], threads=threads)
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    return row


def show(name: str, row: dict[str, float], note: str = "") -> None:
    """Print one row."""
    print(
        f"{name:34} {row['rate']:9,.0f} {1000 * row['p50']:8.2f} {1000 * row['p99']:8.2f} {row.get('errors', 0):7,.0f} "
        f"{row.get('wrong', 0):6,.0f}  {note}",
        flush=True,
    )


def run_load(
    port: int, common: list[str], clients: int, *, seconds: float | None = None, rate: float = 0.0,
    layout: str = "recpipe",
) -> dict[str, float]:  # fmt: skip
    """Run the load generator in a process of its own."""
    words = [*common, "--port", str(port), "--clients", str(clients), "--rate", str(rate), "--layout", layout]
    if seconds is not None:
        words += ["--seconds", str(seconds)]
    command = [sys.executable, LOAD, *words]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    row: dict[str, float] = json.loads(output.splitlines()[-1])
    return row


@contextmanager
def service(arguments: argparse.Namespace) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the service until the block ends; yield its port and process."""
    port = free_port()
    command = [sys.executable, "-m", "recpipe.serving.server", str(arguments.model.resolve())]
    command += ["--params", f"serve.port={port},serve.threads={arguments.threads}"]
    command += ["--conf", str(Path(__file__).parents[1] / "conf"), "--env", "base"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ready", process)
        yield port, process
    finally:
        process.terminate()
        process.wait(20)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], seconds: float = 90.0) -> float:
    """Wait for a 200; return the seconds since the port was open. SystemExit where the process ends before."""
    end, opened = time.perf_counter() + seconds, 0.0
    while time.perf_counter() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return time.perf_counter() - opened if opened else 0.0
        except urllib.error.HTTPError:
            opened = opened or time.perf_counter()
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"{address} did not answer")


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def memory_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def show_restart(arguments: argparse.Namespace, common: list[str]) -> None:
    """Kill the service under load, start it again under the same load, and count lists that are not the model's."""
    with service(arguments) as (port, process):
        words = [*common, "--port", str(port), "--clients", str(arguments.clients), "--layout", "recpipe"]
        loader = subprocess.Popen([sys.executable, LOAD, *words], stdout=subprocess.PIPE)
        assert loader.stdout is not None
        loader.stdout.readline()  # it has begun
        time.sleep(arguments.seconds / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        row = json.loads(loader.stdout.read().splitlines()[-1])
    started = time.perf_counter()
    with service(arguments) as (port, _):
        ready = time.perf_counter() - started
        after = run_load(port, common, clients=arguments.clients, seconds=1)
    imports = import_seconds()
    show("HTTP, killed under load", row)
    show("HTTP, after the restart", after, f"ready {ready:.1f} s after the start, imports alone {imports:.1f} s")


def import_seconds() -> float:
    """Seconds of a process that imports what the service imports."""
    started = time.perf_counter()
    modules = "recpipe.serving.http.app, recpipe.serving.model, recpipe.models.registry, uvicorn"
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return time.perf_counter() - started


def measure_recommend(arguments: argparse.Namespace) -> dict[str, Any]:
    """Users per second of ``recommend`` in batches, and seconds of one user."""
    import recpipe

    model, users = recpipe.load_bundle(arguments.model), users_of(arguments.model)
    rows: dict[str, Any] = {}
    for name, most in (("batches", BATCH), ("single", 1)):
        size = min(most, len(users))
        groups = [dict(list(users.items())[start : start + size]) for start in range(0, len(users) - size + 1, size)]
        model.recommend(groups[0], K)
        seconds: list[float] = []
        while sum(seconds) < arguments.seconds:
            started = time.perf_counter()
            model.recommend(groups[len(seconds) % len(groups)], K)
            seconds.append(time.perf_counter() - started)
        rows[name] = {"rate": size * len(seconds) / sum(seconds), **percentiles(np.array(seconds))}
    return rows


@contextmanager
def mlflow_service(arguments: argparse.Namespace) -> Iterator[int]:
    """Serve a registered model by MLflow; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", arguments.mlflow, "--env-manager", "local"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], start_new_session=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ping", process)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def show_litserve(arguments: argparse.Namespace, common: list[str], full: dict[str, float]) -> None:
    """Measure the same bundle behind LitServe with batches of as many users."""
    try:
        import litserve  # noqa: F401
    except ImportError:
        print(f"{'LitServe':34} {NOT_INSTALLED}")
        return
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("litserve_service.py")), str(arguments.model), str(port)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process)
        one = run_load(port, common, clients=1, seconds=arguments.seconds / 2)
        show("LitServe, one client", one)
        row = run_load(port, common, clients=arguments.clients)
        show("LitServe, all clients", row, f"HTTP is x{full['rate'] / row['rate']:.1f}")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


if __name__ == "__main__":
    main()
