"""Tables of the searches for subsets of filters."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from topoprune.report.frames import network_order, of_kind, typed_frame
from topoprune.study import Record, Trial

_SEARCH_COLUMNS = {
    "ratio": "object",
    "layers": "int64",
    "generations, mean": "float64",
    "subsets evaluated": "int64",
    "seconds": "float64",
    "fitness, first population": "float64",
    "fitness, found": "float64",
}


def search_table(records: Sequence[Record]) -> pd.DataFrame:
    """What searching all layers of a network takes and gains, by ratio: means over dense networks."""
    rows = []
    for record in of_kind(records, Trial):
        searches = [steps for steps in record.result["searches"].values() if steps]
        if searches:
            rows.append(
                {
                    "ratio": f"{record.spec.ratio:g}",
                    "layers": len(searches),
                    "generations, mean": float(np.mean([steps["generation"][-1] for steps in searches])),
                    "subsets evaluated": sum(steps["evaluations"][-1] for steps in searches),
                    "seconds": record.result["selection_seconds"],
                    "fitness, first population": float(np.mean([steps["best"][0] for steps in searches])),
                    "fitness, found": float(np.mean([steps["best"][-1] for steps in searches])),
                }
            )
    whole = {"layers": int, "subsets evaluated": int}
    return typed_frame(rows, _SEARCH_COLUMNS).groupby("ratio").mean().astype(whole).reset_index()


def search_by_layer(records: Sequence[Record]) -> pd.DataFrame:
    """What the search takes in each layer: means over dense networks and ratios."""
    rows = [
        {"layer": layer, "subsets evaluated": steps["evaluations"][-1], "seconds": sum(steps["seconds"])}
        for record in of_kind(records, Trial)
        for layer, steps in record.result["searches"].items()
        if steps
    ]
    frame = typed_frame(rows, {"layer": "object", "subsets evaluated": "int64", "seconds": "float64"})
    table = frame.groupby("layer").mean().astype({"subsets evaluated": int})
    return table.loc[sorted(table.index, key=network_order)].reset_index()
