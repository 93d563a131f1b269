"""What notebooks call beside tables and figures."""

from types import ModuleType

import numpy as np
import pandas as pd


def show_table(table: pd.DataFrame, caption: str, name: str) -> None:
    """Display a table: MyST (numbered, with a caption) in the book, HTML in a notebook."""
    from IPython.display import display

    if "ratio" in table and pd.api.types.is_float_dtype(table["ratio"]):
        table = table.assign(ratio=table["ratio"].map("{:g}".format))
    header = "| " + " | ".join(map(str, table.columns)) + " |"
    rule = "|" + "---|" * len(table.columns)
    rows = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in table.itertuples(index=False)]
    rows = rows or ["| none |" + " |" * (len(table.columns) - 1)]
    myst = "\n".join([f":::{{table}} {caption}", f":name: {name}", "", header, rule, *rows, ":::"])
    display({"text/markdown": myst, "text/html": table.to_html(index=False)}, raw=True)


def _cell(value) -> str:
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


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
    if unknown := sorted(given - {"profile", "device", "seeds", "force"}):
        raise ValueError(
            f"unknown notebook parameter {', '.join(unknown)}: a chapter takes profile, device, seeds and force"
        )
