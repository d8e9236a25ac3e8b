"""Which code made a run: a digest of all that its result may depend on, beside the constants."""

import hashlib
import sys
from contextlib import suppress
from functools import cache
from inspect import getsourcefile, unwrap
from pathlib import Path

from common.errors import UserError

COMMON = Path(__file__).parent.parent
NOT_PART = {"reports", "export.py"}  # what a training never runs


def lines_of(text: str) -> str:
    """The text without comment lines and empty ones."""
    stripped = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in stripped if line and not line.lstrip().startswith("#"))


def digest_of(path: Path | str) -> str:
    """Eight hexadecimal digits of what a file does."""
    return hashlib.sha256(lines_of(Path(path).read_text(encoding="utf-8")).encode()).hexdigest()[:8]


def digest_of_module(function: object, module: str) -> str:
    """That of the file that a function is in, or of the module it was taken from.

    Raises:
        UserError: where no file says what it does.
    """
    for found in (unwrap(getattr(function, "func", function)), sys.modules[module]):
        with suppress(TypeError, OSError, ValueError):
            return digest_of(getsourcefile(found) or "")
    raise UserError(f"NETWORK: got {module}:..., which is no function of a Python file")


@cache
def digest() -> str:
    """Eight hexadecimal digits: of the modules of common/ but those that only draw and print, and of what the script
    does from its `main` on. Its constants are in a run's configuration."""
    found = hashlib.sha256()
    for path in sorted(COMMON.rglob("*.py")):
        if path.relative_to(COMMON).parts[0] not in NOT_PART:
            found.update(
                f"{path.relative_to(COMMON).as_posix()}\n{lines_of(path.read_text(encoding='utf-8'))}".encode()
            )
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    if script.suffix == ".py" and script.is_file():
        _, main, rest = script.read_text(encoding="utf-8").partition("\ndef main(")
        found.update(lines_of(main + rest).encode())
    return found.hexdigest()[:8]
