"""Files that are never half written, and read only when they are whole."""

import csv
import os
from pathlib import Path
from uuid import uuid4

import torch

from common.errors import RunFailed, UserError

UNFINISHED = ".new"  # ending of a file that is being written


def write(path: Path, save) -> None:
    """Calls `save` with a binary file and puts it in the place of `path` at once, when it is wholly on the disk.

    Several processes may write the same path: the last one's stays.

    Raises:
        UserError: when it cannot be written (a full disk, say); what `path` held before is still there.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{UNFINISHED}")
    try:
        with open(temporary, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"could not write {path} ({reason}); make room and run the same command again") from None


def write_text(path: Path, text: str) -> None:
    write(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Rows as CSV; a missing value is an empty field."""

    class Lines(list):
        def write(self, line: str):
            self.append(line)

    lines = Lines()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, "".join(lines))


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file, numbers as numbers and empty fields as None."""

    def value(text: str):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text or None

    with open(path, newline="", encoding="utf-8") as file:
        return [{name: value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def load(path: Path) -> dict:
    """A file that `torch.save` wrote, as tensors and plain values only.

    Raises:
        RunFailed: when it cannot be read, is damaged or not ours.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunFailed(f"could not read {path} ({error.strerror})") from None
    except Exception as error:  # a truncated or foreign file fails in many ways
        reason = str(error).split("\n")[0].split(". ")[0]
        raise RunFailed(f"{path} is damaged or not ours ({reason}); delete it to begin that run again") from None
