"""The floor plan: a module imports only from rooms above its own, and the upper rooms serve a notebook as they are."""

import ast
import re

from tests.conftest import ROOT
from tests.test_start import observed

# From the top down. A file at the root of common/ is a room of its own.
PLAN = (
    *("errors", "names", "machine", "files", "models", "cutting", "groups", "tracing", "units", "sparsity", "saved"),
    *("images", "data", "folders", "training", "pruning", "settings", "export", "reports", "studies"),
)
WORDS = {"matplotlib", "scipy", "sklearn", "torch_pruning", "torchvision"}
NOTEBOOK = [
    "models",
    "data",
    "units",
    "groups",
    "tracing",
    "sparsity",
    "saved",
    "training.loop",
    "training.gradients",
    "pruning.task",
    "pruning.pruner",
]


def imports_of(path) -> set[str]:
    """What a module of common/ imports of it when it is imported: the dotted names after `common`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "common":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("common."):
            found.add(node.module.removeprefix("common."))
    return found


def test_a_module_imports_only_from_rooms_above_its_own():
    rooms = {path.stem for path in (ROOT / "common").glob("*.py")} | {p.parent.name for p in ROOT.glob("common/*/*.py")}
    assert rooms - {"__init__"} == set(PLAN)
    for path in (ROOT / "common").rglob("*.py"):
        room = path.relative_to(ROOT / "common").with_suffix("").parts[0]
        if room != "__init__":
            below = {name for name in imports_of(path) if PLAN.index(name.split(".")[0]) > PLAN.index(room)}
            assert not below, f"{path.relative_to(ROOT)} imports {below}"


def test_files_and_functions_fit_on_few_screens():
    assert len(list((ROOT / "common").glob("*.py"))) <= 15
    for path in (ROOT / "common").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, (path, node.name)


def test_what_a_notebook_takes_brings_no_study_no_progress_bar_and_no_figures(tmp_path):
    code = "import sys, importlib\n"
    code += f"for name in {NOTEBOOK}: importlib.import_module('common.' + name)\n"
    code += "found = [name for name in sys.modules if name.startswith(('common.studies', 'common.reports'))]\n"
    code += "assert not found, found"
    _, imported, error = observed(code, tmp_path)
    assert not error
    assert not imported & WORDS
    for name in NOTEBOOK:  # torch imports tqdm itself
        place = ROOT / "common" / name.replace(".", "/")
        for path in place.glob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
            text = path.read_text(encoding="utf-8")
            assert not re.search("^(from|import) (tqdm|argparse)", text, re.MULTILINE), name
