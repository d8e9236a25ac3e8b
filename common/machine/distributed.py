"""Several processes, one a device, that train one network: what they sum, compare and tell each other.

    torchrun --nproc-per-node=4 Imagenet.py ...

Without torchrun, or with one process, every function here does nothing and costs nothing. Gradients are averaged by
DistributedDataParallel, over gloo on CPUs and the backend that torch has for an accelerator (nccl for CUDA).
Everything that a decision depends on (gradients, counts of units, scores) is the same number in all processes, so all
decide alike; `same` proves it. What only one process can notice, an unreadable image or a full disk, is raised in all
of them, so that none waits for another that has stopped.
"""

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.machine.environment import rank, ranks
from common.machine.pulse import SOON, Pulse

TIMEOUT = timedelta(minutes=30)  # of one exchange: reading a large folder's names may take its time
GOODBYE = timedelta(seconds=30)  # how long a process that ends in an error waits for the others
pulse: Pulse | None = None  # of this process, once it has joined


@cache
def meeting_place() -> dist.Store:
    return next(dist.rendezvous("env://", timeout=TIMEOUT))[0]


def join(backend: str, silence: float) -> None:
    """Makes this process one of its group, by torch's `backend`; from here on only the first process prints.

    silence: seconds without a sign of life after which a process counts as stopped, and the others end.
    """
    if dist.is_initialized():
        return
    global pulse
    pulse = Pulse(meeting_place(), silence)
    store = dist.PrefixStore("group", meeting_place())
    dist.init_process_group(backend, timeout=TIMEOUT, world_size=ranks(), rank=rank(), store=store)
    pulse.start()
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave(status: int) -> None:
    """Before the process ends. In an error it waits for the others: torchrun stops all processes as soon as one has
    ended, and each is to say what is wrong and to end with its own exit status.

    An error ends the process here: the interpreter's own end takes apart a group whose other members are gone, and now
    and then aborts over it.
    """
    if ranks() == 1:
        return
    if status == 0:
        if dist.is_initialized():
            dist.destroy_process_group()
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    try:
        meeting_place().set(f"left/{rank()}", "")
        meeting_place().wait([f"left/{number}" for number in range(ranks())], GOODBYE)
    except RuntimeError:  # another process was lost: no reason to stay
        pass
    os._exit(status)


def is_lost(error: RuntimeError) -> bool:
    """Whether an exchange failed since another process has ended."""
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "gloo" in str(error))


def who_is_lost() -> str:
    """What to say then."""
    with suppress(RuntimeError):  # the meeting place is gone, too
        if any(meeting_place().check([f"left/{number}"]) for number in range(ranks()) if number != rank()):
            return "another process of this run has ended; its own line says why"
    found = pulse.silent(SOON, 2 * SOON) or "an exchange with the other processes failed"
    return f"{found}; the same command goes on from the last checkpoint"


# What one process knows and all must.


def everywhere(function: Callable):
    """What the function returns in this process; what it raises in any process is raised in all."""
    if not dist.is_initialized():
        return function()
    result = error = None
    try:
        result = function()
    except Exception as caught:
        error = caught
    if total(torch.tensor(error is not None, dtype=torch.int64)):
        errors: list = [None] * ranks()
        dist.all_gather_object(errors, error)
        raise next(error for error in errors if error is not None)
    return result


def together(batches: Iterable) -> Iterator:
    """The same batches; what one process meets while it reads is raised in all. They have equally many."""
    if not dist.is_initialized():
        yield from batches
        return
    own = iter(batches)
    while (batch := everywhere(lambda: next(own, None))) is not None:
        yield batch


def by_first(function: Callable):
    """What the function returns, or raises, in the first process, which alone calls it: for all files written."""
    if not dist.is_initialized():
        return function()
    outcome: list = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as caught:
            outcome[1] = caught
    told = list(outcome)
    dist.broadcast_object_list(told, 0)
    if told[1] is not None:
        raise told[1]
    return outcome[0] if rank() == 0 else told[0]


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def of_first(values: Tensor) -> Tensor:
    """The first process's values, in all of them."""
    if dist.is_initialized():
        values = values.clone()
        dist.broadcast(values, 0)
    return values


def gathered(values: list) -> list:
    """The lists of all processes, one after another."""
    if not dist.is_initialized():
        return values
    lists: list = [None] * ranks()
    dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


def digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


def differing(text: str) -> list[str]:
    """What all processes have for `text`, a digest of 16 hexadecimal digits, where they differ; else nothing."""
    if not dist.is_initialized():
        return []
    number = torch.tensor([int(text, 16) - 2**63])
    found = [torch.empty_like(number) for _ in range(ranks())]
    dist.all_gather(found, number)
    return [] if len({int(n) for n in found}) == 1 else [f"{int(n) + 2**63:016x}" for n in found]


# The network.


@torch.no_grad()
def exchange(tensors: list[Tensor], function: Callable[[Tensor], Tensor]) -> None:
    """Puts `function` of all tensors, as one flat tensor, in their place."""
    flat = function(torch.cat([values.flatten() for values in tensors]))
    for values, part in zip(tensors, flat.split([values.numel() for values in tensors]), strict=True):
        values.copy_(part.view_as(values))


def share_state(model: nn.Module) -> None:
    """Gives all processes the first one's weights and buffers."""
    if dist.is_initialized():
        state = list(model.state_dict().values())
        for dtype in dict.fromkeys(values.dtype for values in state):
            exchange([values for values in state if values.dtype == dtype], of_first)


def average_statistics(model: nn.Module) -> None:
    """Each process's batch norms have seen its own examples only: their running means and variances become the
    average over the processes."""
    if dist.is_initialized():
        exchange([b for b in model.buffers() if b.is_floating_point()], lambda flat: total(flat) / ranks())


class Parallel:
    """The network as the loop calls it: as it is in one process, else in DistributedDataParallel, which holds the
    shapes of all gradients and so is made anew when channels were cut."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.wrapped: DistributedDataParallel | None = None
        self.version = 0

    def network(self, version: int, last: bool) -> nn.Module:
        """
        Args:
            version: of the groups.
            last: whether this is a step's last pass, at whose end gradients are averaged.
        """
        if not dist.is_initialized():
            return self.model
        if version != self.version:
            self.forget()
        if self.wrapped is None:
            self.version = version
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the argument's new name is not in torch 2.11
                self.wrapped = DistributedDataParallel(self.model, broadcast_buffers=False, init_sync=False)
        self.wrapped.require_backward_grad_sync = last
        return self.wrapped

    def forget(self) -> None:
        """The next pass wraps the network anew, as a run that goes on from a checkpoint does: the order in which
        gradients are summed is then the same."""
        self.wrapped = None
