"""Ranks of a data-parallel training: their number, their process group, and what they exchange.

A rank is a process with a copy of the model. Ranks of one machine are started by ``rank_processes``; those of several
machines by torchrun or SLURM's srun, each of which runs ``recpipe.training.standalone``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from recpipe.training.settings import TrainSettings

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

TIMEOUT = timedelta(hours=1)  # of a wait for the other ranks, such as for the report of an epoch by rank 0
SRUN = "SLURM_STEP_NUM_TASKS"  # set by srun only; a batch script without it runs one process, however many tasks it has
AFTER = "the last checkpoint is kept and the same command goes on from it, with any number of devices"
COMMAND = (
    "torchrun --nnodes={nodes} --nproc-per-node={devices} -m recpipe.training.standalone --dataset DATASET "
    "--models MODEL --params train.devices={devices},train.num_nodes={nodes}"
)


class RankError(RuntimeError):
    """A rank that ended before the training did."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training; by default it is the only one.

    environment: how Lightning gets to know the others; None for a single process.
    is_external: whether the ranks were started by torchrun or SLURM.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    environment: ClusterEnvironment | None = None
    is_external: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that logs, writes files and returns the result."""
        return self.rank == 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum (...) of all ranks' arrays of equal shape (...)."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.array(values, ndmin=1))
        dist.all_reduce(total)
        return total.numpy().reshape(np.shape(values))

    def smallest(self, value: int) -> int:
        """Return the smallest of all ranks' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return int(tensor)

    def decide(self, *decisions: bool) -> tuple[bool, ...]:
        """Return the decisions of rank 0."""
        if self.size == 1:
            return decisions
        return tuple(bool(value) for value in self.of_main(torch.tensor(decisions, dtype=torch.uint8)))

    def of_main(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor (...) of rank 0, of the shape and type of this rank's."""
        if self.size == 1:
            return tensor
        received = tensor.clone()
        dist.broadcast(received, 0)
        return received

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            self.smallest(0)


def external_ranks() -> Ranks:
    """Return this process among those that torchrun or SLURM started; by default the only one."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    environment: ClusterEnvironment
    if TorchElasticEnvironment.detect():
        environment = TorchElasticEnvironment()
    elif SLURMEnvironment.detect() and SRUN in os.environ:
        environment = SLURMEnvironment()
    else:
        return Ranks()
    size, rank = environment.world_size(), environment.global_rank()
    return Ranks(rank, size, environment.local_rank(), environment, is_external=True) if size > 1 else Ranks()


def count_devices(settings: TrainSettings, device: str) -> int:
    """Resolve ``settings.devices``, and check it against this machine and the ranks of torchrun or SLURM.

    Raises ValueError where there are fewer GPUs or cores, or another number of ranks.
    """
    available = torch.cuda.device_count() if device == "cuda" else _cores()
    devices, external = settings.devices, external_ranks()
    if devices == "auto":
        devices = available if device == "cuda" else 1
    assert isinstance(devices, int)
    if devices > available:
        kind = "GPUs" if device == "cuda" else "cores"
        raise ValueError(f"train.devices is {devices} and this machine has {available} {kind}: lower it, or use auto")
    if external.size == 1 and devices > 1 and sys.platform == "win32":
        raise ValueError(f"train.devices is {devices}; on Windows training uses one device: set train.devices=1")
    if external.size == 1 and settings.num_nodes > 1:
        command = COMMAND.format(nodes=settings.num_nodes, devices=devices)
        raise ValueError(
            f"train.num_nodes is {settings.num_nodes} and this process was not started by torchrun or srun; run on "
            f"every machine `{command}` with the options of torchrun's rendezvous (docs/tutorials/gpus-and-clusters.md)"
        )
    if external.size > 1 and external.size != devices * settings.num_nodes:
        nodes = max(settings.num_nodes, 1)
        raise ValueError(
            f"{external.size} processes were started, by torchrun or as SLURM's tasks, and train.devices={devices} x "
            f"train.num_nodes={settings.num_nodes} asks for {devices * settings.num_nodes}; set "
            f"train.devices={external.size // nodes}, or start as many processes"
        )
    return devices


def is_exchange_error(error: BaseException) -> bool:
    """Whether an exchange between ranks failed, as it does when one of them has ended."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def backend(device: str) -> str:
    """Return the backends of a process group: gloo for what is exchanged on the CPU, NCCL for gradients on GPUs."""
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


@contextmanager
def external_group(ranks: Ranks, device: str) -> Iterator[None]:
    """Join the process group of ``ranks`` that torchrun or SLURM started, unless this process is in it already.

    Raises RankError if another rank has ended.
    """
    if not ranks.is_external or dist.is_initialized():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    assert ranks.environment is not None
    address = f"{ranks.environment.main_address}:{ranks.environment.main_port}"
    is_torchrun = dist.is_torchelastic_launched()  # which keeps the store itself
    dist.init_process_group(
        backend(device),
        init_method="env://" if is_torchrun else f"tcp://{address}",
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=TIMEOUT,
    )
    try:
        yield
    except RuntimeError as error:
        if not is_exchange_error(error):
            raise
        raise RankError(f"another rank has ended, which says why, and training ended on all; {AFTER}") from None
    finally:
        dist.destroy_process_group()
