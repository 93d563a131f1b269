"""Tables of what a measure of the removal tells of its target, from the effects of `evidence.predictors`.

An effect has its interval in parentheses, where there are enough networks for one.
"""

import numpy as np
import pandas as pd


def effect_table(effects: pd.DataFrame) -> pd.DataFrame:
    """One line for each target and predictor: the effect, its p, and the errors with and without the predictor."""
    table = effects[["target", "predictor"]].assign(**{"effect (points)": _effects(effects)})
    return table.join(effects.filter(["p", "error", "error without"]))


def effects_by_target(effects: pd.DataFrame) -> pd.DataFrame:
    """One line for each predictor, a column for each target: the effect in points."""
    cells = effects.assign(effect=_effects(effects)).set_index(["predictor", "target"])["effect"]
    order = effects["predictor"].unique()
    table = cells.unstack("target").reindex(index=order, columns=effects["target"].unique())
    return table.fillna("").rename_axis(columns=None).reset_index(names="predictor")


def _effects(effects: pd.DataFrame) -> list[str]:
    return [
        f"{effect:.2f}" if np.isnan(low) else f"{effect:.2f} ({low:.2f} to {high:.2f})"
        for effect, low, high in effects[["effect", "low", "high"]].astype(float).itertuples(index=False)
    ]
