"""The device module of the pretend accelerator, torch.pretend; its functions answer for torch.accelerator, too."""

import time

import torch
from torch import Tensor

from tests.pretend.machine import DEVICES, machine

# What torch.Generator, torch.Event and torch.Stream are while the device is on ------------------------------------


class Standing(type(torch.Generator)):
    """A class that stands in for the one it derives from: it makes that one's objects for every other device."""

    def __instancecheck__(cls, thing) -> bool:
        return isinstance(thing, cls.__mro__[1])

    def __call__(cls, device=None, **kwargs):
        if device is None and cls is not Generator:
            device = torch.accelerator.current_accelerator()
        if device is None or torch.device(device).type != "pretend":
            return cls.__mro__[1](device or "cpu", **kwargs)
        return type.__call__(cls, device)


class Generator(torch.Generator, metaclass=Standing):
    """Draws what a CPU's generator of the same seed draws."""

    def __new__(cls, device):
        made = super().__new__(cls, "cpu")
        made.ordinal = machine.ordinal(device)
        machine.drawers[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:
        return torch.device("pretend", self.ordinal)


class Event(torch.Event, metaclass=Standing):
    def __new__(cls, device):
        made = super().__new__(cls, "pretend")
        made.after, made.time = 0, None
        return made

    def record(self, stream=None) -> None:
        self.after, self.time = machine.sent, time.perf_counter()

    def query(self) -> bool:
        machine.arrive(self.after)
        return True

    def synchronize(self) -> None:
        machine.wait("synchronize")

    def wait(self, stream=None) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.time - self.time)


class Stream(torch.Stream, metaclass=Standing):
    def __new__(cls, device):
        return super().__new__(cls, "pretend")

    def synchronize(self) -> None:
        machine.wait("synchronize")

    def query(self) -> bool:
        machine.arrive(machine.sent)
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event("pretend")
        event.record(self)
        return event


STANDING = (Generator, Event, Stream)


# What torch.get_device_module finds -------------------------------------------------------------------------------


def is_available() -> bool:
    return machine.on


is_initialized = is_available


def device_count() -> int:
    return DEVICES if machine.on else 0


def current_device() -> int:
    return machine.current


def set_device(device) -> None:
    machine.current = machine.ordinal(device)


def synchronize(device=None) -> None:
    machine.ordinal(device)
    machine.wait("synchronize")


def current_stream(device=None) -> Stream:
    return Stream("pretend")


def get_device_name(device=None) -> str:
    return f"pretend accelerator {machine.ordinal(device)}"


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


# Random numbers.


def _is_in_bad_fork() -> bool:
    return False


def manual_seed_all(seed: int) -> None:
    for generator in machine.generators:
        generator.manual_seed(seed)


def manual_seed(seed: int) -> None:
    machine.generators[machine.current].manual_seed(seed)


def generator(device=None) -> Generator:
    return machine.generators[machine.ordinal(device)]


def get_rng_state(device=None) -> Tensor:
    return generator(device).get_state()


def set_rng_state(state: Tensor, device=None) -> None:
    generator(device).set_state(state)


# Memory, in bytes.


def empty_cache() -> None: ...


def memory_allocated(device=None) -> int:
    return machine.bytes[machine.ordinal(device)]


def max_memory_allocated(device=None) -> int:
    return machine.peak[machine.ordinal(device)]


def reset_peak_memory_stats(device=None) -> None:
    machine.peak[machine.ordinal(device)] = machine.bytes[machine.ordinal(device)]


def memory_stats(device=None) -> dict:
    return {"allocated_bytes": {"all": {"current": memory_allocated(device), "peak": max_memory_allocated(device)}}}


# Behind torch.accelerator, whose functions ask C++, which knows nothing of this device.
ACCELERATOR = {
    "getDeviceIndex": current_device,
    "setDeviceIndex": set_device,
    "getStream": current_stream,
    "synchronizeDevice": synchronize,
    "isAllocatorInitialized": is_available,
    "getDeviceStats": memory_stats,
    "resetPeakStats": reset_peak_memory_stats,
    "emptyCache": empty_cache,
    "getDefaultGenerator": generator,
}
