"""Tables of choosing by what channels compute, and of compensation."""

import pandas as pd


def compensation_table(measured: dict, section: str) -> pd.DataFrame:
    """The rows of a section of `topoprune.measure.compensation`, with units.

    Args:
        measured: what it wrote.
        section: "choices", "ratios" or "networks".

    Example:
        >>> compensation_table({"choices": [{"choice": "merge tree", "seconds": 2.345}]}, "choices")
               choice  seconds
        0  merge tree      2.3
    """
    table = pd.DataFrame(measured[section]).rename(columns={"memory": "memory (MiB)"})
    return table.round({"seconds": 1, "memory (MiB)": 0})
