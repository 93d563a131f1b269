"""What a chapter shows, and what it leaves to download."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from topoprune import study
from topoprune.report import figures, notebook


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """What is displayed, by a chapter in a folder of its own."""
    bundles = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_a_figure_is_shown_with_its_downloads(shown, tmp_path):
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    figure.data = pd.DataFrame({"x": [1, 2]})
    plt.close(figure)
    figures.show(figure, "A caption.", "What is seen.", "a-name")
    assert (tmp_path / "downloads/a-name.svg").read_text().count("<svg") == 1
    assert (tmp_path / "downloads/a-name.csv").read_text() == "x\n1\n2\n"
    myst = shown[0]["text/markdown"]
    assert ":name: a-name\n:alt: What is seen.\n\nA caption. {download}`SVG <downloads/a-name.svg>`" in myst


def test_a_table_is_shown_with_its_data(shown, tmp_path):
    table = pd.DataFrame(
        {"ratio": [0.5], "method": ["L1"], "p": [0.12345], "mean": ["9 ± 1"], "far": [12.345], "none": [float("nan")]}
    )
    notebook.show_table(table, "A caption.", "a-table")
    assert shown[0]["text/markdown"].splitlines() == [
        ":::{table} A caption. {download}`CSV <downloads/a-table.csv>` {ref}`records <record-files>`",
        ":name: a-table",
        "",
        "| ratio | method | p | mean | far | none |",
        "|---|---|---|---|---|---|",
        "| 0.5 | L1 | 0.123 | 9 ±\N{NO-BREAK SPACE}1 | 12.35 |  |",
        ":::",
    ]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "downloads/a-table.csv"), table)


@pytest.mark.parametrize(
    "values, cells",
    [
        ([56.7, -0.1, float("nan")], ["56.7", "-0.1", ""]),
        ([0.25, 1.5], ["0.25", "1.50"]),
        ([-0.0, 1.5], ["0.0", "1.5"]),
        ([0.125, 12.345], ["0.125", "12.35"]),
        ([1.0, 2.0], ["1.00", "2.00"]),
        ([3, 4], ["3", "4"]),
    ],
)
def test_a_rounded_column_keeps_its_decimals(shown, values, cells):
    notebook.show_table(pd.DataFrame({"points": values, "p": 0.05}), "A caption.", "rounded")
    rows = shown[0]["text/markdown"].splitlines()[-1 - len(values) : -1]
    assert rows == [f"| {cell} | 0.05 |" for cell in cells]


def test_an_empty_table_says_none(shown):
    notebook.show_table(pd.DataFrame(columns=["method", "p"]), "A caption.", "empty")
    assert "| none | |" in shown[0]["text/markdown"]


def test_the_whole_of_a_brief_table_stands_behind_a_fold_and_in_the_download(shown, tmp_path):
    whole = pd.DataFrame({"ratio": [0.5, 0.5, 0.9], "method": ["L1", "L2", "L1"], "test (%)": [90.0, 91.5, 80.0]})
    notebook.show_table(whole.groupby("method")["test (%)"].mean().reset_index(), "A caption.", "brief", whole)
    table, fold = shown[0]["text/markdown"].split("\n\n:::{dropdown} The whole table: 3 rows, 3 columns\n")
    assert table.splitlines()[-3:] == ["| L1 | 85.0 |", "| L2 | 91.5 |", ":::"]
    assert fold.splitlines()[-4:] == ["| 0.5 | L1 | 90.0 |", "| 0.5 | L2 | 91.5 |", "| 0.9 | L1 | 80.0 |", ":::"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "downloads/brief.csv"), whole)
    assert shown[0]["text/html"].count("<tr") == 3 + 4 and "<details>" in shown[0]["text/html"]


def test_the_files_of_the_records_can_be_downloaded(shown, tmp_path):
    import hashlib

    records = tmp_path / "study.jsonl"
    records.write_text('{"a": 1}\n{"a": 2}\n')
    notebook.show_record_files([records, tmp_path / "none.jsonl"], "A caption.", "record-files")
    assert (tmp_path / "downloads" / "study.jsonl").read_bytes() == records.read_bytes()
    digest = hashlib.sha256(records.read_bytes()).hexdigest()[:16]
    row = f"| {{download}}`study.jsonl <downloads/study.jsonl>` | 2 | 1 | {digest} |"
    assert row in shown[0]["text/markdown"] and "none.jsonl" not in shown[0]["text/markdown"]


def test_an_unknown_notebook_parameter_is_refused():
    known = {"profile": "quick", "device": None, "seeds": None, "force": False, "study": study, "_i": "", "In": []}
    notebook.check_parameters(known)
    with pytest.raises(ValueError, match="unknown notebook parameter n_genn: a chapter takes"):
        notebook.check_parameters({**known, "n_genn": 6})
