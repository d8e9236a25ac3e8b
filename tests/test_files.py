"""Files that cannot be written: why, in words, and nothing lost."""

import errno

import pytest
import torch

from common import files
from common.errors import UserError


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; make room, and run the same command again"),
        (errno.EDQUOT, "the disk quota is used up; make room, and run the same command again"),
        (errno.EIO, "Input/output error; mend that, and run the same command again"),
    ],
)
@pytest.mark.parametrize("saved", ["tensors", "text"])
def test_a_write_that_fails_says_why_and_keeps_what_was_there(tmp_path, monkeypatch, number, words, saved):
    path = tmp_path / "file"
    path.write_text("before")

    def fail(self, data):
        self.error = OSError(number, files.os.strerror(number))
        raise self.error

    monkeypatch.setattr(files.Noted, "write", fail)
    content = {
        "tensors": lambda file: torch.save({"a": torch.rand(100_000)}, file),
        "text": lambda f: f.write(b"after"),
    }
    with pytest.raises(UserError) as error:
        files.write(path, content[saved])
    assert str(error.value) == f"could not write {path}: {words}"
    assert path.read_text() == "before"
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


def test_what_a_failed_write_remembers_is_the_systems_own_reason(tmp_path):
    full = files.Noted("/dev/full", "w") if files.os.path.exists("/dev/full") else pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"):
        full.write(b"x" * 100_000)
    assert full.error.errno == errno.ENOSPC


def test_a_folder_that_is_gone_is_said(tmp_path):
    with pytest.raises(UserError, match="its folder is gone; look what deleted it, and run the same command again"):
        files.write_text(tmp_path / "gone" / "file", "x")
