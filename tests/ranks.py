"""One of several processes that go through the same commands, as torchrun would start them: `ranks.py CASES OUT`.

CASES is a JSON list of {script, flags, spoil}; OUT gets a JSON list of [exit status, error lines] of all but the last,
in which the processes end. `spoil` names what goes wrong in one process.
"""

import json
import os
import signal
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import files, folders  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.groups import Groups  # noqa: E402
from common.machine import distributed, environment, process  # noqa: E402
from common.pruning.sparse import Masked  # noqa: E402
from common.studies import sparsity  # noqa: E402
from common.training import checkpoints  # noqa: E402
from tests.conftest import script_module  # noqa: E402

RANK = environment.rank()


def cuts_one_fewer(patch):
    honest = Groups.cut

    def cut(self, model, optimizer, removed, multiple=1):
        if RANK == 1 and optimizer is not None:
            removed = removed[:-1]
        return honest(self, model, optimizer, removed, multiple)

    patch.setattr(Groups, "cut", cut)


def masks_one_other(patch):
    honest = Masked.hold

    def hold(self, run, masks):
        if RANK == 1 and run.step > 1:
            masks[0].view(-1)[:8] ^= True
        honest(self, run, masks)

    patch.setattr(Masked, "hold", hold)


def cannot_read(patch):
    honest = folders.Folder.batches

    def batches(self, *arguments):
        for number, batch in enumerate(honest(self, *arguments)):
            if RANK == 1 and number == 2:
                raise OSError(5, "Input/output error", "a.jpg")
            yield batch

    patch.setattr(folders.Folder, "batches", batches)


def cannot_write(patch):
    def full(path, save):
        raise UserError(f"could not write {path.name} (No space left on device)")

    patch.setattr(files, "write", full if RANK == 0 else files.write)


def other_flags(patch):
    if RANK == 1:
        sys.argv += ["--momentum", "0.8"]


def stops_after_step_3(patch):
    honest = checkpoints.Checkpoints.on_step

    def on_step(self, run):
        honest(self, run)
        if run.step == 3:
            raise KeyboardInterrupt

    patch.setattr(checkpoints.Checkpoints, "on_step", on_step)


def falls_silent(patch):
    honest = checkpoints.Checkpoints.on_step

    def on_step(self, run):
        honest(self, run)
        if run.step == 4 and RANK == 1:
            os.kill(os.getpid(), signal.SIGSTOP)

    patch.setattr(checkpoints.Checkpoints, "on_step", on_step)


SPOILS = (cuts_one_fewer, masks_one_other, cannot_read, cannot_write, other_flags, stops_after_step_3, falls_silent)


def begin(case: dict, patch) -> int:
    sys.argv = [case["script"] + ".py", *case["flags"].split()]
    for spoil in SPOILS:
        if spoil.__name__ == case.get("spoil"):
            spoil(patch)
    return process.run(script_module(case["script"]).main)


def outcome(case: dict) -> list:
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as error:
        patch.setattr(distributed, "leave", lambda status: None)  # there is a next case
        status = begin(case, patch)
    return [status, error.getvalue()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sparsity.inference_speedup = lambda *_: 1.0  # measured for seconds
    *before, last = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([outcome(case) for case in before]))
    begin(last, pytest.MonkeyPatch())
