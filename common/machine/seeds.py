"""Seeds."""

import hashlib


def stream(seed: int, purpose: str, epoch: int) -> int:
    """A seed of its own for every purpose and epoch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()[:7], "big")
