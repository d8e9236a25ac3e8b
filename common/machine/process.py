"""A script as a process: its exit status, what it says of errors, Ctrl-C, and the memory that it keeps.

Nothing here imports torch before it is needed: --help and a wrong constant are answered without.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

from common.errors import UserError
from common.machine import environment

STOPPED = "\nstopped; the same command goes on from the last checkpoint"


class Interrupts:
    """Ctrl-C, or the SIGTERM that clusters send, remembered: a KeyboardInterrupt that is raised where Python ignores
    exceptions (while an object is finalised, say) would be lost, so the training loop asks after every step."""

    seen = 0  # its number

    @classmethod
    def note(cls, number: int, *_):
        cls.seen = number
        raise KeyboardInterrupt

    @classmethod
    def check(cls):
        if cls.seen:
            raise KeyboardInterrupt

    @classmethod
    def pass_over(cls, ignored) -> None:
        """In the place of `sys.unraisablehook`, which would print such a KeyboardInterrupt with its traceback."""
        if not (cls.seen and issubclass(ignored.exc_type, KeyboardInterrupt)):
            sys.__unraisablehook__(ignored)


def noted() -> tuple[int, ...]:
    """The signals that end a script with a line. Of several processes, torchrun ends the others by SIGTERM, and waits
    for none."""
    return (signal.SIGINT,) if environment.ranks() > 1 else (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """What they do until `run` has other uses for them."""

    def end(number: int, *_):
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(128 + number)

    for number in noted():
        signal.signal(number, end)


def keep_freed_memory() -> None:
    """What a step frees stays with the process for the next step, where the C library is glibc.

    Given back and fetched again, page by page, it takes a tenth of a step at width 16 on a CPU.
    """
    mmap_threshold, trim_threshold = -3, -1  # as mallopt numbers them
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (TypeError, OSError, AttributeError):  # Windows has no such handle, macOS and musl no such function
        return
    mallopt(mmap_threshold, 32 * 2**20)  # the largest that it takes
    mallopt(trim_threshold, 2**31 - 1)


def run(main: Callable[[], int | None]) -> int:
    """Calls a script's `main` and returns its exit status: 2 and one line for a mistake that the user can mend."""
    keep_freed_memory()
    Interrupts.seen = 0
    before = {number: signal.signal(number, Interrupts.note) for number in noted()}
    hook, sys.unraisablehook = sys.unraisablehook, Interrupts.pass_over
    try:
        status = report_errors(main)
        if environment.ranks() > 1:
            from common.machine import distributed

            distributed.leave(status)
        return status
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


REFUSED = "can't allocate memory"  # in torch's plain RuntimeError on a CPU


def is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or REFUSED in str(error)


def out_of_memory(error: RuntimeError) -> str:
    text = str(error)
    reason = text[max(text.find(REFUSED), 0) :].split(". ")[0]
    return f"out of memory ({reason}); lower BATCH_SIZE or WIDTH"


def report_errors(main: Callable[[], int | None]) -> int:
    """What went wrong, as one line."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename:
            print(f"error: {error.filename}: {error.strerror or error}", file=sys.stderr)
        else:  # as of a pipe that nobody reads any more
            what = f"what is printed cannot be written ({error.strerror or error})"
            print(f"error: {what}; the same command goes on from the last checkpoint", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from common.machine import distributed

        if is_out_of_memory(error):
            line = out_of_memory(error)
        elif distributed.is_lost(error):
            line = distributed.who_is_lost()
        else:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 128 + (Interrupts.seen or signal.SIGINT)
