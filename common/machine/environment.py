"""Which process this one is among those that torchrun started, as its environment says. Alone without torchrun."""

import os


def rank() -> int:
    return int(os.environ.get("RANK", 0)) if ranks() > 1 else 0


def ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0)) if ranks() > 1 else 0


def processes_here() -> int:
    """On this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks()))
