"""Tables: read, taken over seeds, and as text."""

from pathlib import Path

import numpy as np
import pandas as pd

from common.files import read_csv

Series = tuple[np.ndarray, np.ndarray, np.ndarray]  # keys in order, mean and standard deviation at each


def read(path: Path) -> pd.DataFrame:
    """The table of a study, numbers to the last bit, NaN for an empty field; empty where there is no file."""
    rows = pd.DataFrame(read_csv(path) if path.exists() else [])  # pandas 2 rounds what it reads itself
    return rows.astype({name: float for name in rows if rows[name].isna().all()})


def over(by: pd.Series, values: pd.Series) -> Series:
    """Mean and standard deviation (n - 1; 0 for one) of the values of each key, without those that are missing."""
    found = values.astype(float).dropna().groupby(by).agg(["mean", "std"])
    return found.index.to_numpy(), found["mean"].to_numpy(), found["std"].fillna(0.0).to_numpy()


def over_seeds(table: pd.DataFrame, by: list[str], value: str, scale: float = 100, decimals: int = 1) -> pd.Series:
    """Mean ± standard deviation (n - 1) of a column for each group, as text; without the deviation for one seed."""
    groups = (scale * table.set_index(by)[value].dropna().astype(float)).groupby(level=by, sort=False)
    return groups.agg(lambda values: spread(values, decimals))


def spread(values: pd.Series, decimals: int) -> str:
    """Mean ± standard deviation (n - 1) of what is not missing; "-" for nothing."""
    mean, deviation = (digits(number, decimals) for number in (values.mean(), values.std()))
    return mean if deviation == "-" else f"{mean} ± {deviation}"


def digits(value: float | None, decimals: int, sign: str = "") -> str:
    """A number as text, "-" for a missing one. sign: "+" for both signs."""
    return "-" if pd.isna(value) else f"{value:{sign}.{decimals}f}"


def columns(table: pd.DataFrame, shown: dict[str, tuple[str, int, int]]) -> dict[str, list[str]]:
    """Header -> cells, of columns given as header -> name, what it is multiplied by, and decimals."""
    return {
        header: [digits(scale * value, decimals) for value in table[name].astype(float)]
        for header, (name, scale, decimals) in shown.items()
    }


def markdown(table: pd.DataFrame) -> str:
    lines = [table.columns, ["---"] * table.shape[1], *table.fillna("-").itertuples(index=False)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def text(table: pd.DataFrame) -> str:
    return table.astype(object).where(table.notna(), "-").to_string(index=False)
