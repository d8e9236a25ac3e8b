"""Runs a script with the pretend accelerator installed and switched on: python -m tests.pretend SCRIPT FLAGS..."""

import runpy
import sys

import torch

from tests import pretend

torch.set_num_threads(1)
pretend.install()
del sys.argv[0]
with pretend.on():
    runpy.run_path(sys.argv[0], run_name="__main__")
