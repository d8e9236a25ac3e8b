"""What the pretend accelerator has besides tensors: counters, memory, copies on their way, random numbers."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from torch import Tensor

DEVICES = 2


@dataclass
class Seen:
    """What `counting` saw.

    launches: operations started on the device, by name (`mul`, `_fused_sgd_`, `convolution`, `copy_`).
    syncs: points at which the host waited for it, by name (`item`, `index`, `copy to host`, `synchronize`).
    """

    launches: Counter = field(default_factory=Counter)
    syncs: Counter = field(default_factory=Counter)


class Held:
    """Memory of a device in use; it lives as long as the storage that it is kept at."""

    def __init__(self, machine: "Machine", ordinal: int, size: int):
        self.machine, self.ordinal, self.size = machine, ordinal, size
        machine.bytes[ordinal] += size
        machine.peak[ordinal] = max(machine.peak[ordinal], machine.bytes[ordinal])

    def __del__(self):
        self.machine.bytes[self.ordinal] -= self.size


class Machine:
    """The one of this process. It is there only while it is `on`."""

    def __init__(self):
        self.on = False
        self.current = 0  # device
        self.watchers: list[Seen] = []
        self.generators: list[torch.Generator] = []  # of each device, for what is given none
        self.drawers = WeakValueDictionary()  # every generator of the device, by the address that torch knows it by
        self.bytes, self.peak = [0] * DEVICES, [0] * DEVICES
        self.copies: list[tuple[Tensor, Tensor]] = []  # on their way to the host: where to and what
        self.arrived = 0  # how many came before those

    def ordinal(self, device) -> int:
        """The number of a device that is given as torch takes it, the current one where it has none."""
        number = device if isinstance(device, int) else None if device is None else torch.device(device).index
        number = self.current if number is None else number
        if not 0 <= number < DEVICES:
            raise RuntimeError(f"pretend: invalid device ordinal {number}, there are {DEVICES} devices")
        return number

    # Counting.

    def launch(self, name: str) -> None:
        for seen in self.watchers:
            seen.launches[name] += 1

    def wait(self, name: str) -> None:
        """The host waits until all that was started is done."""
        for seen in self.watchers:
            seen.syncs[name] += 1
        self.arrive(self.sent)

    # Copies that the host does not wait for: until it does, it reads what was there before.

    @property
    def sent(self) -> int:
        return self.arrived + len(self.copies)

    def send(self, target: Tensor, values: Tensor) -> None:
        self.copies.append((target, values))

    def arrive(self, until: int) -> None:
        while self.arrived < until:
            target, values = self.copies.pop(0)
            self.arrived += 1
            target.copy_(values)

    # Memory.

    def hold(self, raw: Tensor, ordinal: int) -> None:
        """Counts a tensor's memory, once for all its views, until the last of them is gone."""
        storage = raw.untyped_storage()
        if not hasattr(storage, "held"):
            storage.held = Held(self, ordinal, storage.nbytes())

    @staticmethod
    def pin(tensor: Tensor) -> None:
        tensor.untyped_storage().pinned = True

    @staticmethod
    def is_pinned(tensor: Tensor) -> bool:
        return getattr(tensor.untyped_storage(), "pinned", False)

    # Random numbers.

    @contextmanager
    def random(self, operation, arguments: dict, ordinal: int):
        """Has an operation that draws at random take the device's own generator, unless it is given one."""
        given = arguments.get("generator")
        if given is not None:  # torch hands on the generator, but not as the object that was given
            found = self.drawers[given._cdata].device if given._cdata in self.drawers else given.device
            if found != torch.device("pretend", ordinal):
                raise RuntimeError(f"Expected a 'pretend:{ordinal}' device type for generator but found '{found}'")
        if not operation.seeded or given is not None:
            yield
        elif operation.generator:
            arguments["generator"] = self.generators[ordinal]
            yield
        else:  # it takes none: the host's stands in
            host, own = torch.default_generator, self.generators[ordinal]
            before = host.get_state()
            host.set_state(own.get_state())
            yield
            own.set_state(host.get_state())
            host.set_state(before)


machine = Machine()
