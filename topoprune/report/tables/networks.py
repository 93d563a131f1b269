"""Tables of the dense networks and of the recipes that trained them."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from topoprune.report.frames import of_kind, trained_by, trials, typed_frame
from topoprune.report.tables.comparison import mean_and_interval
from topoprune.study import Dense, Profile, Record

_DENSE_COLUMNS = {
    "data set": "object",
    "seed": "int64",
    "epochs": "int64",
    "cutout": "int64",
    "test accuracy (%)": "float64",
    "validation accuracy (%)": "float64",
    "parameters (M)": "float64",
    "multiply-adds (M)": "float64",
    "training (min)": "float64",
    "device": "object",
}


def dense_table(records: Sequence[Record]) -> pd.DataFrame:
    """The dense networks: one row for each."""
    rows = [
        {
            "data set": record.spec.dataset,
            "seed": record.spec.seed,
            "epochs": record.spec.recipe.epochs,
            "cutout": record.spec.recipe.cutout,
            "test accuracy (%)": 100 * record.result["test"],
            "validation accuracy (%)": 100 * record.result["validation"],
            "parameters (M)": record.result["cost"]["parameters"] / 1e6,
            "multiply-adds (M)": record.result["cost"]["flops"] / 1e6,
            "training (min)": sum(epoch["seconds"] for epoch in record.result["history"]) / 60,
            "device": record.provenance["device"],
        }
        for record in of_kind(records, Dense)
    ]
    return typed_frame(rows, _DENSE_COLUMNS)


def dense_summary(records: Sequence[Record]) -> pd.DataFrame:
    """The dense networks: one row for each data set and cutout, means over networks as in `mean_and_interval`."""
    columns = ["data set", "cutout", "networks", "test accuracy (%)", "validation accuracy (%)", "training (min)"]
    rows = [
        {
            "data set": dataset,
            "cutout": cutout,
            "networks": len(group),
            "test accuracy (%)": mean_and_interval(group["test accuracy (%)"], 2),
            "validation accuracy (%)": mean_and_interval(group["validation accuracy (%)"], 2),
            "training (min)": f"{group['training (min)'].mean():.1f}",
        }
        for (dataset, cutout), group in dense_table(records).groupby(["data set", "cutout"], sort=False)
    ]
    return pd.DataFrame(rows, columns=columns)


def mean_accuracy(records: Sequence[Record]) -> str:
    """Mean test accuracy of the dense networks, in words."""
    table = dense_table(records)
    if table.empty:
        return "not part of this profile"
    networks = "one network" if len(table) == 1 else f"mean of {len(table)} networks"
    return f"{table['test accuracy (%)'].mean():.2f} % on the test images ({networks})"


def recipe_table(profile: Profile) -> pd.DataFrame:
    """The settings of dense training and of fine-tuning, side by side."""
    dense, recovery = asdict(profile.dense), asdict(profile.recovery)
    return pd.DataFrame(
        [
            {
                "setting": name.replace("_", " "),
                "dense training": f"{dense[name]:g}",
                "fine-tuning": f"{recovery[name]:g}",
            }
            for name in dense
        ]
    )


def optimizers_table(records: Sequence[Record], contrast: Sequence[Record]) -> pd.DataFrame:
    """Trials of two profiles side by side, named by the optimizer that trained their dense networks.

    A trial counts if the other profile has its partner: the same ratio, method and seed.
    """
    columns = {"dense test": "dense (%)", "test": "fine-tuned (%)", "removed norm": "norm removed (%)"}
    cell = ["ratio", "method"]
    frames = [trials(profile) for profile in (records, contrast)]
    if any(frame.empty for frame in frames):
        return pd.DataFrame(columns=cell)
    shared = frames[0][[*cell, "seed"]].merge(frames[1][[*cell, "seed"]])
    sides = []
    for profile, frame in zip((records, contrast), frames, strict=True):
        frame["removed norm"] *= 100
        grouped = frame.merge(shared).groupby(cell, sort=False)
        means = grouped[list(columns)].mean().rename(columns=columns)
        means.insert(0, "networks", grouped.size())
        sides.append(means.add_prefix(f"{trained_by(profile)['optimizer']}: "))
    return sides[0].join(sides[1], how="inner").reset_index()
