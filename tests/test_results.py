"""The pages of docs/results/ say what the committed tables say."""

import pandas as pd
import pytest

from common.reports import results, tables


@pytest.mark.parametrize("name", results.PAGES)
def test_the_committed_page_is_what_the_tables_say(name):
    page = results.MADE + results.PAGES[name](results.ROOT / "plots")
    path = results.ROOT / "docs" / "results" / name
    assert path.read_text(encoding="utf-8") == page, "write it anew: python -m common.reports.results"


def test_the_committed_summaries_are_what_the_tables_say():
    found = results.summaries(results.ROOT / "plots")
    assert len(found) == 5
    for path, text in found.items():
        assert path.read_text(encoding="utf-8") == text, "write it anew: python -m common.reports.results"


def test_a_cell_is_the_mean_and_the_deviation_over_seeds():
    rows = [("a", 0.5, 0, 0.80), ("a", 0.5, 1, 0.84), ("b", 0.5, 0, 0.90), ("a", 0.9, 0, None), ("b", 0.9, 0, 0.25)]
    table = pd.DataFrame(rows, columns=["method", "target", "seed", "test_accuracy"])
    cells = results.by_target(table.dropna(), "test_accuracy")
    assert cells.loc["a", "50 %"] == "82.0 ± 2.8"
    assert cells.loc["b"].tolist() == ["b", "90.0", "25.0"]
    assert pd.isna(cells.loc["a", "90 %"])
    assert "| a | 82.0 ± 2.8 | - |" in tables.markdown(cells)


def test_a_table_without_a_result_leaves_a_dash_and_no_nan(tmp_path):
    table = pd.DataFrame({"method": ["a", "b"], "80 %": ["1.0", None]})
    assert "nan" not in tables.markdown(table).lower()
