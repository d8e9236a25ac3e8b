"""The pages of docs/results/: every committed table as Markdown, over seeds, with the paper's numbers beside ours; and
the summary beside every table of a sparsity study.

    python -m common.reports.results            writes them anew from plots/
    python -m common.reports.results --check    writes nothing; exit status 1 where a page is not what the tables say

So text and tables cannot part: a test runs the second.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from common import files, names
from common.pruning import label
from common.reports import canvas, comparison, paper, tables
from common.reports.sparsity import combined_otherwise, void_in
from common.reports.tables import markdown, over_seeds

ROOT = Path(__file__).parent.parent.parent
MADE = "<!-- Written by `python -m common.reports.results`; edit the tables in plots/, or that command. -->\n"

VOID = """**Void in this table: SNAP, CroPit-S, EarlySNAP and EarlyCroP-S.** They were scored in training mode,
which is not what their authors do.
"""


def setup(settings: dict) -> tuple[str, str]:
    return settings["dataset"], settings["network"]["name"]


def conditions(settings: dict) -> str:
    """What was trained, in a line."""
    network, dataset = settings["network"], canvas.dataset_name(settings["dataset"])
    name = names.NETWORKS.get(network["name"], network["name"])
    activation = names.ACTIVATION_LABELS.get(settings["activation"], settings["activation"])
    return (
        f"{name} of width {network['width']} with {activation} on {dataset}: {settings['epochs']} epochs, batch size "
        f"{settings['batch_size']}, {settings['precision']}, {settings['device']}."
    )


def link(text: str, path: Path) -> str:
    return f"[{text}](../../{path.relative_to(ROOT).as_posix()})"


def source(path: Path, made: dict) -> str:
    return f"{link('Table', path)}; the last command that wrote to it: `python {made['command']}`."


# Pages -----------------------------------------------------------------------------------------------------------


def by_target(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row for each method, a column for each target, the best mean over all targets first."""
    order = table.groupby(["method", "target"])[value].mean().groupby("method").mean().sort_values(ascending=False)
    cells = over_seeds(table, ["method", "target"], value).unstack().reindex(order.index)
    cells.columns = [f"{100 * target:g} %" for target in cells.columns]
    cells.insert(0, "method", [label(method) for method in cells.index])
    return cells


def by_strength(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """A row for each method and strength: what was removed, and the accuracy."""
    table, by = comparison.with_removed(table, kind), ["method", "strength"]
    cells = pd.DataFrame(
        {
            "seeds": table.groupby(by)["seed"].nunique().map(str),
            f"{names.SPARSITY_LABELS[f'{kind}-sparsity'].lower()} (%)": over_seeds(table, by, "removed"),
            "test accuracy (%)": over_seeds(table, by, "test_accuracy"),
        }
    ).reset_index()
    cells["method"] = [label(method) for method in cells["method"]]
    cells["strength"] = [f"{strength:g}" for strength in cells["strength"]]
    return cells


def seeds_behind(table: pd.DataFrame) -> str:
    """How many seeds are behind the cells."""
    counts = table.groupby(["method", "target"])["seed"].nunique()
    if counts.min() == counts.max():
        return f"{counts.max()} seeds each" if counts.max() > 1 else "one seed each"
    return f"{counts.max()} seeds where a deviation is given, one where none is"


def sparsity_section(path: Path) -> str:
    table, made = tables.read(path), files.origin(path)
    settings, kind = made["settings"], path.stem.split("-")[0]
    dense = over_seeds(table[table["method"] == "dense"], ["method"], "test_accuracy")
    pruned = table[table["method"] != "dense"].dropna(subset=["test_accuracy"])
    untargeted, pruned = pruned[pruned["target"].isna()], pruned[pruned["target"].notna()]
    published = paper.accuracies(setup(settings), settings["activation"], kind)
    title = f"{names.ACTIVATION_LABELS[settings['activation']]}, {names.SPARSITY_LABELS[path.stem].lower()}"
    if (apart := path.parents[1]) != ROOT / "plots":
        title += f": {apart.name}"
    parts = [f"## {title}\n", f"{conditions(settings)}\n"]
    parts.append(
        f"Test accuracy in per cent at each target, mean ± standard deviation, {seeds_behind(pruned)}"
        + (f"; the dense network has {dense.iloc[0]}.\n" if len(dense) else ".\n")
    )
    if void_in(settings["methods"], pruned):
        parts.append(VOID)
    if other := combined_otherwise(settings["methods"], pruned):
        parts.append(f"**Groups were ranked otherwise than today: {other}.**\n")
    parts.append(markdown(by_target(pruned, "test_accuracy")))
    parts.append("Inference FLOPs in per cent of the dense network's:\n")
    parts.append(markdown(by_target(pruned, "inference_flops_ratio")))
    if len(untargeted):
        parts.append("Methods without targets, by the strength that they were run with:\n")
        parts.append(markdown(by_strength(untargeted, kind)))
    if published:
        lines = pd.DataFrame(published).T
        lines.columns = [f"{100 * target:g} %" for target in lines.columns]
        lines.insert(0, "method", [label(method) for method in lines.index])
        parts.append("The paper's test accuracy, read off its figure (width 64, 100 to 300 epochs):\n")
        parts.append(markdown(lines))
    summary, figure = path.with_name(f"{path.stem}-summary.md"), path.with_suffix(".png")
    others = {"differences to DS-Pruning, their intervals and verdicts": summary, "figure": figure}
    links = [link(text, file) for text, file in others.items() if file.exists()]
    parts.append(f"{source(path, made)} Also: {', '.join(links)}.\n")
    return "\n".join(parts)


def tables_of(plots: Path) -> list[Path]:
    """Those of the sparsity studies: in plots/SCRIPT, and, where an OUTPUT_DIR of their own was given, below. (The
    prototype's table is of another form.)"""
    found = [path for study in names.SPARSITY_LABELS for path in sorted(plots.rglob(f"{study}.csv"), reverse=True)]
    found = [path for path in found if "methods" in files.origin(path)["settings"]]
    return sorted(found, key=lambda path: (list(names.SPARSITY_LABELS).index(path.stem), len(path.parts)))


def sparsity_page(plots: Path) -> str:
    return "# Accuracy at equal sparsity\n\n" + "\n".join(map(sparsity_section, tables_of(plots)))


def sweep_section(path: Path) -> str:
    table, made = tables.read(path), files.origin(path)
    swept = names.SWEEPS[path.stem].column
    settings = made["settings"]
    fixed = [
        name for name in ("footing", "regularization", "learning_rate") if name != swept and table[name].nunique() > 1
    ]
    by = [*fixed, swept]
    table = table.sort_values(by)
    table["unit_epochs"] = table["cumulative_dead"] / (table["units"] * table["epochs"])
    table["dying"] = table["dying_units"] / table["units"]
    cells = pd.DataFrame(
        {
            "seeds": table.groupby(by, sort=False)["seed"].nunique().map(str),
            "dead units": over_seeds(table, by, "dead_units", 1, 0),
            "dead in the last tenth": over_seeds(table, by, "dead_at_end", 1, 0),
            "dead unit-epochs (%)": over_seeds(table, by, "unit_epochs"),
            "dying units an epoch (%)": over_seeds(table, by, "dying"),
            "test accuracy (%)": over_seeds(table, by, "test_accuracy"),
        }
    ).reset_index()
    bars = paper.dead_units(setup(settings), settings["activation"], path.stem)
    if bars:
        equal = cells["footing"] == "epochs" if "footing" in cells else [True] * len(cells)
        known = [value in bars and alike for value, alike in zip(cells[swept], equal, strict=True)]
        shown = [f"{bars[value]:,}" if here else "-" for value, here in zip(cells[swept], known, strict=True)]
        cells["the paper's bar"] = shown
    for name in by:
        cells[name] = [value if name == "footing" else f"{value:g}" for value in cells[name]]
    cells = cells.rename(columns=names.COLUMN_LABELS)
    figure, trends = path.with_suffix(".png"), path.with_name(f"{path.stem}-trends.md")
    parts = [
        f"## {path.stem.replace('-', ' ').capitalize()}\n",
        f"{conditions(settings)} {table['units'].iloc[0]} units.\n",
        markdown(cells),
        f"{source(path, made)} {link('Figure', figure)}, {link('trends', trends)}.\n",
    ]
    return "\n".join(parts)


def returns_section(path: Path) -> str:
    """Dead units that fired again, by how many epochs they had been dead; all seeds together."""
    table = tables.read(path)
    table = table[table["footing"] == "epochs"] if "footing" in table else table
    swept = names.SWEEPS[path.stem.removesuffix("-returns")].column
    table = table[table["regularization"] > 0]
    sums = table.groupby([swept, "dead_for"])[["at_risk", "came_back"]].sum()
    cells = sums.apply(lambda row: f"{100 * row['came_back'] / row['at_risk']:.1f} % of {row['at_risk']:,.0f}", axis=1)
    cells = cells.unstack()
    cells = cells[[length for length in cells.columns if length <= 4]]
    cells.columns = [f"dead for {length}" for length in cells.columns]
    cells.insert(0, names.COLUMN_LABELS[swept], [f"{value:g}" for value in cells.index])
    return markdown(cells)


def death_page(plots: Path) -> str:
    parts = ["# What makes units die\n"]
    for study in names.SWEEPS:
        path = plots / "Resnet18" / f"{study}.csv"
        if not path.exists():
            continue
        parts.append(sweep_section(path))
        returns = path.with_name(f"{study}-returns.csv")
        if returns.exists():
            parts.append("Dead units that fired again in the next epoch, by the epochs that they had been dead:\n")
            parts.append(returns_section(returns))
    return "\n".join(parts)


def scripts_page(plots: Path) -> str:
    rows, lines = [], []
    for path in sorted(plots.glob("*/accumulation.csv")):
        table, made = tables.read(path), files.origin(path)
        settings = made["settings"]
        by = ["learning_rate", "regularization"]
        last = table[table["epoch"] == table["epoch"].max()]
        table["dying"] = table["dying_units"] / table["units"]
        per_run = table.groupby([*by, "seed"])["dying"].mean().reset_index()
        found = pd.DataFrame(
            {
                "seeds": last.groupby(by)["seed"].nunique().map(str),
                "test accuracy (%)": over_seeds(last, by, "test_accuracy"),
                "dead units": over_seeds(last, by, "dead_units", 1, 0),
                "dying units an epoch (%)": over_seeds(per_run, by, "dying"),
            }
        ).reset_index()
        noise = table["noise_std"].iloc[0]
        shares = [
            None if penalty else paper.dying_share(setup(settings), settings["activation"], noise, rate)
            for rate, penalty in zip(found["learning_rate"], found["regularization"], strict=True)
        ]
        found["the paper's (%)"] = ["-" if share is None else f"{share:.0f}" for share in shares]
        found.insert(0, "script", f"`{path.parent.name}.py`")
        found.insert(1, "activation", names.ACTIVATION_LABELS[settings["activation"]])
        rows.append(found)
        lines.append(f"- {conditions(settings)} {source(path, made)}\n")
    table = pd.concat(rows)
    for name in ("learning_rate", "regularization"):
        table[name] = [f"{value:g}" for value in table[name]]
    return (
        "# What each script found\n\nThe study `accumulation`: dead units are those of the last epoch, dying units the "
        "mean over all epochs but the first.\n\n"
        + markdown(table.rename(columns=names.COLUMN_LABELS))
        + "\n"
        + "".join(lines)
    )


def summary_of(path: Path) -> str:
    return comparison.markdown(comparison.comparison(tables.read(path), names.SPARSITY[path.stem]))


def summaries(plots: Path) -> dict[Path, str]:
    """The summary beside every table of a sparsity study."""
    return {path.with_name(f"{path.stem}-summary.md"): summary_of(path) for path in tables_of(plots)}


PAGES = {"sparsity.md": sparsity_page, "death.md": death_page, "scripts.md": scripts_page}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, folder = parser.parse_args().check, ROOT / "docs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    stale = []
    pages = {folder / name: MADE + page(ROOT / "plots") for name, page in PAGES.items()}
    for path, text in {**summaries(ROOT / "plots"), **pages}.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'not what the tables say' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
