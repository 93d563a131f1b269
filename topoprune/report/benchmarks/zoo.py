"""Tables of torchvision's networks, pruned."""

import pandas as pd


def zoo_table(measured: dict) -> pd.DataFrame:
    """One row a network that was pruned."""
    rows = pd.DataFrame([row for row in measured["networks"] if row["outcome"] == "pruned"])
    table = rows[["network", "parameters (M)", "layers", "left whole", "parameters left (%)", "seconds"]]
    return table.round({"parameters (M)": 1, "parameters left (%)": 1, "seconds": 1})


def zoo_numbers(measured: dict) -> dict:
    """Numbers for the text.

    Returns:
        networks, pruned, too_large, refused: how many; names: of those refused; layers, whole: of the pruned ones.
    """
    rows = measured["networks"]
    pruned = [row for row in rows if row["outcome"] == "pruned"]
    large = [row["network"] for row in rows if row["outcome"] == "too large"]
    refused = [row["network"] for row in rows if row["outcome"] not in ("pruned", "too large")]
    return {
        "networks": len(rows),
        "pruned": len(pruned),
        "too_large": len(large),
        "refused": len(refused),
        "names": ", ".join(refused) or "none",
        "layers": sum(row["layers"] for row in pruned),
        "whole": sum(row["left whole"] for row in pruned),
    }
