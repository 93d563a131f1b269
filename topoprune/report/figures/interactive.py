"""The explorer, in which a reader picks a method, a ratio and a seed."""

import json
from collections.abc import Sequence

from matplotlib.colors import to_hex

from topoprune.report.figures.drawing import COLOURS
from topoprune.report.frames import of_kind, trials
from topoprune.study import Record, Trial


def explorer(records: Sequence[Record]) -> str:
    """HTML that holds the recovery curve of every run; `_static/explorer.js` draws them."""
    runs = []
    for record, (_, row) in zip(of_kind(records, Trial), trials(records).iterrows(), strict=True):
        curve = [record.result["damage"], *record.result["history"]]
        runs.append(
            {
                "method": row["method"],
                "ratio": f"{row['ratio']:g}",
                "seed": row["seed"],
                "test": [round(100 * point["test"], 2) for point in curve],
                "dense": round(row["dense test"], 2),
                "flops": round(100 * row["flops"], 2),
                "recovered": bool(row["recovered"]),
                "colour": to_hex(COLOURS.get(row["method"], "grey")),
            }
        )
    runs.sort(key=lambda run: float(run["ratio"]))
    data = json.dumps(runs).replace("<", "\\u003c")  # no text of a record ends the script
    return (
        f'<div id="explorer"></div><script type="application/json" id="explorer-data">{data}'
        '</script><script src="../_static/explorer.js"></script>'
    )
