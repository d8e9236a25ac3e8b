"""Files that are never half written, and read only when they are whole."""

import csv
import errno
import io
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch

from common.errors import Damaged, RunFailed, UserError

UNFINISHED = ".new"  # ending of a file that is being written
FORMAT = 1  # of the files of a run; raised when the same constants come to mean another training


REASONS = {
    errno.ENOSPC: "the disk is full; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EACCES: "no permission; allow it",
    errno.EPERM: "no permission; allow it",
    errno.EROFS: "the disk can only be read; take another place",
    errno.ENOENT: "its folder is gone; look what deleted it",
}


class Noted(io.FileIO):
    """A file that remembers why it could not be written: what writes to it may say so in words of its own."""

    error: OSError | None = None

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def write(path: Path, save) -> None:
    """Calls `save` with a binary file and puts it in the place of `path` at once, when it is wholly on the disk.

    Several processes may write the same path: the last one's stays.

    Raises:
        UserError: when it cannot be written (a full disk, say); what `path` held before is still there.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}{UNFINISHED}")
    noted = None
    try:
        noted = Noted(temporary, "w")
        with io.BufferedWriter(noted) as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save wraps a full disk in a RuntimeError
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = noted.error if noted and noted.error else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        reason = REASONS.get(getattr(cause, "errno", None), f"{reason}; mend that")
        raise UserError(f"could not write {path}: {reason}, and run the same command again") from None


def remove_unfinished(path: Path) -> None:
    """What a process that was killed left of a file that it was writing. Nobody may be writing it now."""
    for left in path.parent.glob(f".{path.name}.*{UNFINISHED}"):
        left.unlink(missing_ok=True)


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


def origin(table: Path) -> dict:
    """What the .json beside a study's table says: `command`, `versions`, and `settings`, which its rows have in common.

    Raises:
        UserError: where it cannot be read.
    """
    path = table.with_suffix(".json")
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        return {**made, "settings": dict(made["settings"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what the rows of {table.name} have in common ({error})") from None


def read_tensors(path: Path | str):
    """What `torch.save` wrote, on the CPU: tensors and plain values only, never code. None where the file is damaged,
    by a single bit as well, or not of that kind.

    Raises:
        RunFailed: when it cannot be read.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise RunFailed(f"could not read {path} ({error.strerror or error})") from None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch.load takes a flipped bit for a weight
                    return None
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a truncated or foreign file fails in many ways, most of them in many lines
        return None


def load(path: Path) -> dict:
    """A file of a run.

    Raises:
        RunFailed: when it cannot be read; Damaged: when it is damaged or not ours.
    """
    found = read_tensors(path)
    if not isinstance(found, dict):
        raise Damaged(f"{path} is damaged or not ours; delete it to begin that run again")
    return found
