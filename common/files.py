"""Files that are never half written, and read only when they are whole."""

import csv
import errno
import io
import json
import os
import re
import zipfile
import zlib
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
    """A file that remembers why it could not be written, as what writes to it may say so in words of its own; and the
    checksum of what was."""

    error: OSError | None = None
    checksum = 0

    def write(self, data) -> int:
        try:
            done = super().write(data)
        except OSError as error:
            self.error = error
            raise
        self.checksum = zlib.crc32(memoryview(data)[:done], self.checksum)
        return done


SEAL = re.compile(rb"crc32=([0-9a-f]{8})")  # the end of a sealed file: the checksum of all before it


def write(path: Path, save, sealed: bool = False) -> None:
    """Calls `save` with a binary file and puts it in the place of `path` at once, when it is wholly on the disk.

    Several processes may write the same path: the last one's stays. sealed: the file's checksum stands at its end.

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
            if sealed:
                file.write(b"crc32=%08x" % noted.checksum)
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


def write_tensors(path: Path, state: dict) -> None:
    """As `torch.save`, sealed."""
    write(path, lambda file: torch.save(state, file), sealed=True)


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
    """The rows of a CSV file, numbers as numbers and empty fields as None.

    Raises:
        OSError: when it cannot be read; ValueError: when it is damaged.
    """

    def value(text: str):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text or None

    with open(path, newline="", encoding="utf-8") as file:
        try:
            header, *lines = csv.reader(file, strict=True)
        except (csv.Error, ValueError) as error:  # of an empty file, too, or one that is not UTF-8
            raise ValueError(f"{path} is damaged ({str(error).partition(chr(10))[0]})") from None
    if odd := [number for number, line in enumerate(lines, 2) if len(line) != len(header)]:
        raise ValueError(f"{path} is damaged (line {odd[0]} has not as many fields as the first)")
    return [dict(zip(header, map(value, line), strict=True)) for line in lines]


def origin(table: Path) -> dict:
    """What the .json beside a study's table says: `command`, `versions`, and `settings`, which its rows have in common.

    Raises:
        UserError: where it cannot be read.
    """
    path = table.with_suffix(".json")
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        made = {**made, "settings": dict(made["settings"])}
        if not isinstance(made["settings"].get("methods", {}), dict):
            raise TypeError("methods")
        return made
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} does not say what the rows of {table.name} have in common ({error})") from None


def is_whole(path: Path | str) -> bool:
    """Whether a file ends with its own checksum. One of an earlier version has none: of that, the checksums of what is
    in it, and that none of it passes for a folder, which torch would leave empty."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(0, size - 14))
        if seal := SEAL.fullmatch(file.read()):
            file.seek(0)
            left, checksum = size - 14, 0
            while part := file.read(min(left, 2**20)):
                left, checksum = left - len(part), zlib.crc32(part, checksum)
            return checksum == int(seal[1], 16)
    if not zipfile.is_zipfile(path):
        return True  # of a kind that torch may still read
    with zipfile.ZipFile(path) as archive:
        return not archive.testzip() and not any(entry.external_attr for entry in archive.infolist())


def read_tensors(path: Path | str):
    """What `torch.save` wrote, on the CPU: tensors and plain values only, never code. None where the file is damaged,
    by a single bit as well, or not of that kind.

    Raises:
        RunFailed: when it cannot be read.
    """
    try:
        if Path(path).is_fifo():  # which would be waited for
            raise RunFailed(f"could not read {path} (it is a pipe)")
        open(path, "rb").close()
    except OSError as error:
        raise RunFailed(f"could not read {path} ({error.strerror or error})") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True) if is_whole(path) else None
    except Exception:  # a truncated or foreign file fails in many ways, most of them in many lines
        return None


PARTS = {  # what a file of a run cannot do without, and of what kind it is
    "final": {"config": dict, "model": dict, "rows": list, "counts": dict},
    "checkpoint": {"epoch": int, "model": dict, "optimizer": dict, "scheduler": dict, "rows": list, "callbacks": dict},
}


def load(path: Path) -> dict:
    """A file of a run.

    Raises:
        RunFailed: when it cannot be read; Damaged: when it is damaged or not ours.
    """
    found = read_tensors(path)
    parts = PARTS.get(path.name.partition(".")[0].removesuffix("-before"), {})
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in parts.items()):
        raise Damaged(f"{path} is damaged or not ours; delete it to begin that run again")
    return found
