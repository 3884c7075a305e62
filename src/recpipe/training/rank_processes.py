"""Processes of a training on several devices of this machine: start, supervision and end.

The caller is rank 0, so that callbacks, results and Ctrl-C are where they are without ranks. Ranks 1, 2, … are fresh
interpreters: a fork would inherit locks of threads and an OpenMP that hangs, and CUDA forbids it; a run of the command
again, as Lightning's ``ddp`` has it, would repeat the pipeline. They get the training by a pipe, and its arrays by
memory that all of them map. They end when the pipe is closed, as it is however rank 0 ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from recpipe.accelerate import keep_freed_memory
from recpipe.training.distributed import AFTER, TIMEOUT, RankError, Ranks, backend, is_exchange_error
from recpipe.training.shared_memory import load_shared, shared_memory

GRACE = 10.0  # seconds in which a rank ends by itself, and in which an exchange fails once a rank has ended
STARTING = 300.0  # seconds in which all ranks must be ready

Work = Callable[[Ranks], object]  # pickled; what ranks 1, 2, … do

log = logging.getLogger(__name__)


class RankProcesses:
    """Context in which ranks 1 to ``size - 1`` run ``work`` beside the caller, who is rank 0.

    ``ranks`` is the caller's place among them. A rank that ends early ends all, and leaving the context raises
    RankError with its last words.
    """

    def __init__(self, work: Work, size: int, *, device: str) -> None:
        self.ranks = Ranks(0, size, 0, LocalEnvironment(0, size))
        self._work, self._device = work, device
        self._processes: list[subprocess.Popen[bytes]] = []
        self._output: list[IO[bytes]] = []
        self._failure: tuple[int, int] | None = None  # rank, exit code
        self._is_over, self._lock = False, threading.Lock()

    def __enter__(self) -> Ranks:
        self._threads = torch.get_num_threads()
        self._folder = tempfile.TemporaryDirectory(prefix="recpipe-ranks-")
        try:
            self._start()
        except BaseException:
            self._end(kill=True)
            raise
        return self.ranks

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._end(kill=False)
            return
        if is_exchange_error(error):
            self._await_failure()
        self._end(kill=True)
        if self._failure is not None and (is_exchange_error(error) or isinstance(error, RankError)):
            raise RankError(self._message()) from None

    def _start(self) -> None:
        size, threads = self.ranks.size, self._threads
        if self._device == "cpu":
            threads = max(threads // size, 1)
            torch.set_num_threads(threads)
        store_file = Path(self._folder.name) / "store"
        store = dist.FileStore(str(store_file), size)  # type: ignore[attr-defined]
        with shared_memory(self._work) as (header, memory):
            for rank in range(1, size):
                start = {
                    "rank": rank,
                    "size": size,
                    "device": self._device,
                    "threads": threads,
                    "store": str(store_file),
                    "memory": memory,
                }
                self._processes.append(self._process(threads, memory))
                threading.Thread(target=self._watch, args=(rank,), daemon=True).start()
                pipe = self._processes[-1].stdin
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):  # it has ended: `_watch` says how
                    pickle.dump(start, pipe)
                    pipe.write(header)
                    pipe.flush()
            self._await_ready(store)
        dist.init_process_group(backend(self._device), store=store, rank=0, world_size=size, timeout=TIMEOUT)

    def _process(self, threads: int, memory: int) -> subprocess.Popen[bytes]:
        output = tempfile.TemporaryFile()  # noqa: SIM115
        self._output.append(output)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        return subprocess.Popen(
            [sys.executable, "-c", "from recpipe.training.rank_processes import main; main()"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)},
            pass_fds=[memory],
            start_new_session=True,  # Ctrl-C is for rank 0, which ends the others
        )

    def _await_ready(self, store: Any) -> None:
        """Wait until all ranks have started, which an exchange would do without looking at their exit codes."""
        deadline = time.monotonic() + STARTING
        missing = {f"ready {rank}" for rank in range(1, self.ranks.size)}
        while missing := {key for key in missing if not store.check([key])}:
            if self._failure is not None or time.monotonic() > deadline:
                self._end(kill=True)
                raise RankError(self._message())
            time.sleep(0.05)

    def _watch(self, rank: int) -> None:
        """Wait for the end of a rank; end the others if it was too early."""
        code = self._processes[rank - 1].wait()
        with self._lock:
            if self._is_over or self._failure is not None or code == 0:
                return
            self._failure = rank, code
            self._kill()
        if self._device == "cuda":
            self._abort()

    def _abort(self) -> None:
        """End exchanges of GPUs, which wait for a dead rank; end this process where that does not help."""
        with contextlib.suppress(Exception):
            dist.distributed_c10d._abort_process_group()
        deadline = time.monotonic() + GRACE
        while not self._is_over and time.monotonic() < deadline:
            time.sleep(0.1)
        if not self._is_over:
            log.critical("%s", self._message())
            os._exit(1)

    def _await_failure(self) -> None:
        """Give a rank whose connection was lost the time to end."""
        deadline = time.monotonic() + GRACE
        while self._failure is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def _end(self, *, kill: bool) -> None:
        with self._lock:
            self._is_over = True
        if kill:
            self._kill()
        deadline = time.monotonic() + GRACE
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        if kill and self._device == "cuda":  # exchanges with ranks that have ended would be waited for
            with contextlib.suppress(Exception):
                dist.distributed_c10d._abort_process_group()
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(self._threads)
        self._folder.cleanup()

    def _message(self) -> str:
        if self._failure is None:
            return f"not all of {self.ranks.size} ranks have started within {STARTING:g} s; {AFTER}"
        rank, code = self._failure
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as the system does when memory runs out"
        output = self._output[rank - 1]
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
        why = f" ({lines[-1].strip()})" if lines else ""
        log.debug("output of rank %s:\n%s", rank, "\n".join(lines))
        return f"rank {rank} of {self.ranks.size} {how}{why}, and training ended on all; {AFTER}"


class LocalEnvironment(ClusterEnvironment):
    """Ranks of one machine, for Lightning; their process group exists when training begins."""

    creates_processes_externally = True
    main_address, main_port = "127.0.0.1", 0

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self._rank, self._size = rank, size

    @staticmethod
    def detect() -> bool:
        """Return False: Lightning never chooses it by itself."""
        return False

    def world_size(self) -> int:
        """Return the number of ranks."""
        return self._size

    def set_world_size(self, size: int) -> None:
        """Check the number of ranks, which is fixed."""
        assert size == self._size

    def global_rank(self) -> int:
        """Return the rank of this process."""
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Check the rank of this process, which is fixed."""
        assert rank == self._rank

    def local_rank(self) -> int:
        """Return the rank of this process on this machine, the only one."""
        return self._rank

    def node_rank(self) -> int:
        """Return 0, the rank of the only machine."""
        return 0


def main() -> None:
    """Run as a rank: read the work from the pipe, join the process group, and work."""
    pipe = sys.stdin.buffer
    start = pickle.load(pipe)  # noqa: S301
    work: Work = load_shared(pipe, start["memory"])
    os.close(start["memory"])
    threading.Thread(target=_end_with_main, daemon=True).start()
    rank, size, device = start["rank"], start["size"], start["device"]
    logging.disable(logging.WARNING)  # rank 0 says it
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.set_num_threads(start["threads"])
    keep_freed_memory()  # as the trainings of rank 0
    store = dist.FileStore(start["store"], size)  # type: ignore[attr-defined]
    store.set(f"ready {rank}", "")
    dist.init_process_group(backend(device), store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    with contextlib.suppress(KeyboardInterrupt):  # an interruption by `on_epoch`, which all ranks know
        work(Ranks(rank, size, rank, LocalEnvironment(rank, size)))
    dist.destroy_process_group()
    os._exit(0)  # an interpreter's way takes seconds, for which rank 0 would wait


def _end_with_main() -> None:
    """End this process when the pipe is closed, as it is when rank 0 ends in any way."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
