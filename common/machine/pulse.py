"""A sign of life from each of several processes: one that is stopped does not keep the others waiting for ever.

Signs are counted, and no clock is read: a process that was stopped itself, with its whole machine perhaps, looks as
often as ever before it takes another one for stopped.
"""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from itertools import count

import torch.distributed as dist

from common.machine.environment import rank, ranks

LOOKS = 20  # without a new sign, after which a process counts as stopped
SOON = 3  # the same where an exchange has failed already


class Pulse:
    """Leaves signs at the meeting place; when another process's stay out, this one ends with a line and status 2.

    Args:
        store: the meeting place.
        silence: seconds without a sign after which a process counts as stopped.
    """

    def __init__(self, store: dist.Store, silence: float):
        self.store, self.every = store.clone(), silence / LOOKS  # a connection of its own: on one, calls wait in line
        self.signs = [0] * (1 + ranks())  # of the meeting place, and of each rank
        self.names = [f"the meeting place of all ranks, {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']},"]
        self.store.set(f"signs/{rank()}", "0")
        self.store.set(f"host/{rank()}", socket.gethostname())

    def start(self) -> None:
        """Once all processes have left their first sign."""
        hosts = self.store.multi_get([f"host/{number}" for number in range(ranks())])
        self.names += [f"rank {number} on {host.decode()}" for number, host in enumerate(hosts)]
        for part in (self.beat, self.watch):
            threading.Thread(target=part, daemon=True).start()

    def beat(self) -> None:
        for answers in count(1):
            with suppress(RuntimeError):  # the meeting place is gone
                self.store.add(f"signs/{rank()}", 1)
                signs = self.store.multi_get([f"signs/{number}" for number in range(ranks())])
                self.signs = [answers, *map(int, signs)]
            time.sleep(self.every)

    def watch(self) -> None:
        line = self.silent(LOOKS)
        print(f"error: {line}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(2)

    def silent(self, looks: int, most: int | None = None) -> str:
        """Waits until one has given no new sign for so many looks, and says which; nothing after `most` looks."""
        signs, missed = self.signs, [0] * (1 + ranks())
        for _ in range(most) if most else count():
            time.sleep(self.every)
            before, signs = signs, self.signs
            missed = [0 if old != new else out + 1 for out, old, new in zip(missed, before, signs, strict=True)]
            if max(missed) >= looks:
                name, seconds = self.names[missed.index(max(missed))], looks * self.every
                return f"{name} gave no sign of life for {seconds:g} s: stopped, killed, or its machine is gone"
        return ""
