"""What chapters show: tables and figures, each numbered and with its data to download."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from topoprune import study
from topoprune.study.plans import companion_specs

DOWNLOADS = Path("downloads")
"""Folder, beside the chapter, of figures (SVG) and of the data of figures and tables (CSV)."""

PARAMETERS = {"profile", "device", "seeds", "force"}
"""Parameters that a chapter may have."""

RECORDS_LINK = "{ref}`records <record-files>`"
"""Where a table's caption leads: the files of which all tables are made, see `show_record_files`."""


def show_table(table: pd.DataFrame, caption: str, name: str, whole: pd.DataFrame | None = None) -> None:
    """Display a table: numbered, with a caption and its data, in the book; as HTML in a notebook.

    Args:
        table: what the text speaks of. A page has room for about six columns and a dozen rows.
        caption: MyST.
        name: of the CSV file, and of the target that text refers to.
        whole: the table that was cut to `table`. It stands behind a fold, and in the CSV file instead of `table`.
    """
    data = DOWNLOADS / f"{name}.csv"
    DOWNLOADS.mkdir(exist_ok=True)
    (table if whole is None else whole).to_csv(data, index=False)
    caption = f"{caption} {{download}}`CSV <{data}>` {RECORDS_LINK}"
    myst = "\n".join([f":::{{table}} {caption}", f":name: {name}", "", _markdown(table), ":::"])
    html = table.to_html(index=False)
    if whole is not None:
        title = f"The whole table: {len(whole)} rows, {len(whole.columns)} columns"
        myst += "\n\n" + "\n".join([f":::{{dropdown}} {title}", "", _markdown(whole), ":::"])
        html += f"<details><summary>{title}</summary>{whole.to_html(index=False)}</details>"
    _display(myst, html)


def show_figure(figure: Figure, caption: str, alt: str, name: str) -> None:
    """Display a figure: numbered, with its picture and data, in the book; as it is in a notebook.

    Args:
        figure: of `topoprune.report.figures`, with its data as the attribute `data`.
        caption: MyST.
        alt: what a reader who cannot see the figure should know.
        name: of the files, and of the target that text refers to.
    """
    picture, data = DOWNLOADS / f"{name}.svg", DOWNLOADS / f"{name}.csv"
    DOWNLOADS.mkdir(exist_ok=True)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    picture.write_text(svg.getvalue())
    figure.data.to_csv(data, index=False)  # type: ignore[attr-defined]
    caption = f"{caption} {{download}}`SVG <{picture}>`, {{download}}`data (CSV) <{data}>`."
    myst = "\n".join([f":::{{figure}} {picture}", f":name: {name}", f":alt: {alt}", "", caption, ":::"])
    _display(myst, svg.getvalue())


def show_record_files(paths: Iterable[Path], caption: str, name: str) -> None:
    """Display files of records or measurements, each to download; those that do not exist are left out.

    Args:
        paths: JSON files, or files of one JSON record a line.
        caption, name: see `show_table`.
    """
    DOWNLOADS.mkdir(exist_ok=True)
    rows = []
    for path in (path for path in paths if path.exists()):
        copy = Path(shutil.copy(path, DOWNLOADS))
        rows.append(
            {
                "file": f"{{download}}`{path.name} <{copy}>`",
                "records": len(path.read_text().splitlines()) if path.suffix == ".jsonl" else 1,
                "kB": -(-path.stat().st_size // 1000),
                "SHA-256, its beginning": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            }
        )
    show_table(pd.DataFrame(rows, columns=["file", "records", "kB", "SHA-256, its beginning"]), caption, name)


def companion_records(
    name: str, which: str, seeds: Iterable[int] | None = None, device: str | None = None, force: bool = False
) -> list[study.Record]:
    """As `study.companion_records`, but empty where nothing is on record and TOPOPRUNE_NO_RUN forbids to run it.

    A chapter then says so instead of failing: its companion was not run yet.
    """
    companion, wanted = companion_specs(name, which, seeds)
    if companion and os.environ.get("TOPOPRUNE_NO_RUN") and not force:
        stored = study.records_store(companion).load()
        if not any(study.spec_key(spec) in stored for spec in wanted):
            return []
    return study.companion_records(name, which, seeds, device, force)


def say_if_missing(records: Sequence[study.Record], profile: str) -> None:
    """Display a sentence where nothing of a profile is on record."""
    if not records:
        text = "Nothing of this profile is on record yet: its figures are empty, and its claims are undecided."
        command = f"python -m topoprune run --profile {profile}"
        myst = f":::{{note}}\n{text} The command `{command}` makes its records.\n:::"
        _display(myst, f"<p>{text} The command <code>{command}</code> makes its records.</p>")


def check_parameters(names: dict) -> None:
    """Refuse a notebook's parameters that no chapter has; papermill itself would go on.

    Args:
        names: the notebook's `globals()` after its imports, before it assigns anything.

    Raises:
        ValueError: naming the unknown parameter.
    """
    given = {
        name
        for name, value in names.items()
        if not name.startswith("_")
        and name not in ("In", "Out")
        and not isinstance(value, ModuleType)
        and not callable(value)
    }
    if unknown := sorted(given - PARAMETERS):
        raise ValueError(
            f"unknown notebook parameter {', '.join(unknown)}: a chapter takes profile, device, seeds and force"
        )


def _display(myst: str, html: str) -> None:
    from IPython.display import display

    display({"text/markdown": myst, "text/html": html}, raw=True)


def _markdown(table: pd.DataFrame) -> str:
    if "ratio" in table and pd.api.types.is_float_dtype(table["ratio"]):
        table = table.assign(ratio=table["ratio"].map("{:g}".format))
    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    decimals = [_decimals(table.iloc[:, i]) for i in range(len(table.columns))]
    rows = ["| " + " | ".join(map(_cell, row, decimals)) + " |" for row in table.astype(object).itertuples(index=False)]
    return "\n".join([header, rule, *(rows or ["| none |" + " |" * (len(table.columns) - 1)])])


def _decimals(column: pd.Series) -> int | None:
    """Decimals that a column was rounded to, if these are one or two; else None."""
    if not pd.api.types.is_float_dtype(column):
        return None
    return next((n for n in (1, 2) if column.round(n).equals(column) and not column.round().equals(column)), None)


def _cell(value, decimals: int | None) -> str:
    if not isinstance(value, float):
        return str(value).replace(" ± ", " ±\N{NO-BREAK SPACE}")
    if np.isnan(value):
        return ""
    if decimals is None:
        decimals = 3 if abs(value) < 1 else 2
    return f"{value:z.{decimals}f}"  # z: no minus sign before zero
