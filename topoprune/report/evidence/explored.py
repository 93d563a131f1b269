"""What was asked beside the claims: small ratios without any training, and ways of fine-tuning."""

from collections.abc import Sequence
from itertools import product

import pandas as pd
import torch

from topoprune.costs import flops
from topoprune.models import build
from topoprune.network import remove
from topoprune.report.evidence.beyond import FUNCTIONAL
from topoprune.report.evidence.beyond_claims import NOT_ON_RECORD, points
from topoprune.report.evidence.claims import LEAST_SEEDS
from topoprune.report.evidence.statistics import paired_difference
from topoprune.report.frames import NAMES, dense_accuracy, of_kind, records_by_ratio, removals_by_network, typed_frame
from topoprune.selection import select
from topoprune.study import Profile, Record, Removal, Trial, variant
from topoprune.study.profiles import COMPENSATED
from topoprune.training import Recipe

PLAIN, REFITTED = "plain", "refitted"
YES, NO, OPEN = "yes", "no", "open"
CONTROL = "random, plain"
"""Arm of random removal without a refit; the other arms are those of the functional choice."""

_ARM = {"recipe": "object", "arm": "object", "seed": "int64"}
_COLUMNS = {**_ARM, "before": "float64", "first": "float64", "last": "float64", "recovered": "bool"}
_CURVE_COLUMNS = {**_ARM, "epoch": "int64", "accuracy": "float64"}


def recipe_in_words(recipe: Recipe) -> str:
    """What sets a way of fine-tuning apart.

    >>> recipe_in_words(Recipe(epochs=5, peak_rate=0.015, warmup=0.0, distillation=0.9))
    'peak rate 0.015, no warm-up, teacher'
    """
    parts = [f"peak rate {recipe.peak_rate:g}"]
    parts += ["no warm-up"] * (recipe.warmup == 0) + ["teacher"] * (recipe.distillation > 0)
    return ", ".join(parts)


def fine_tunings(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each trial of a network that all ways share: recipe in words, arm, seed, and test accuracies (%).

    A way is a recipe with an arm ("plain" or "refitted"; with its choice before it, where that is not the functional
    one), so that its mean can stand beside those of the others. Where no network has all ways that are on record, each
    way keeps its own networks.

    `before`, `first` and `last` are those before fine-tuning, after its first epoch and after its last; `recovered`
    tells whether validation accuracy came within half a point of the dense network's.
    """
    rows = [
        {
            **_arm(record.spec),
            "before": 100 * record.result["damage"]["test"],
            "first": 100 * record.result["history"][0]["test"],
            "last": 100 * record.result["history"][-1]["test"],
            "recovered": record.result["recovery"]["reached"],
        }
        for record in of_kind(records, Trial)
    ]
    return _of_shared_networks(typed_frame(rows, _COLUMNS))


def fine_tuning_curves(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each of these trials and epoch (0: before fine-tuning): recipe, arm, seed, epoch, accuracy (%)."""
    rows = [
        {**_arm(record.spec), "epoch": epoch, "accuracy": 100 * test}
        for record in of_kind(records, Trial)
        for epoch, test in enumerate(
            [record.result["damage"]["test"], *(step["test"] for step in record.result["history"])]
        )
    ]
    return _of_shared_networks(typed_frame(rows, _CURVE_COLUMNS))


def shares_networks(frame: pd.DataFrame) -> bool:
    """Whether all recipes and arms of a frame have the same networks."""
    return frame.groupby(["recipe", "arm"])["seed"].agg(frozenset).nunique() <= 1


def _of_shared_networks(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the networks that all recipes and arms have; all rows where they share none."""
    networks = [set(own["seed"]) for _, own in frame.groupby(["recipe", "arm"])]
    shared = set.intersection(*networks) if networks else set()
    return frame[frame["seed"].isin(shared)].reset_index(drop=True) if shared else frame


def _arm(trial: Trial) -> dict:
    choice, arm = NAMES[variant(trial).removesuffix(COMPENSATED)], REFITTED if trial.compensation else PLAIN
    arm = arm if choice == FUNCTIONAL else f"{choice}, {arm}"
    return {"recipe": recipe_in_words(trial.recovery), "arm": arm, "seed": trial.dense.seed}


def kept_gains(records: Sequence[Record]) -> pd.DataFrame:
    """What is left of the gain of refitting: refitted less plain, in points of test accuracy, paired in each network.

    Returns:
        A row for each recipe and `measured` ("before", "first" or "last", see `fine_tunings`): seeds, difference, low,
        high (95 % interval), p (two-sided, not corrected: nothing is claimed).
    """
    frame = fine_tunings(records)
    wide = frame.pivot_table(index=["recipe", "seed"], columns="arm", values=["before", "first", "last"], sort=False)
    rows = [
        {"recipe": recipe, "measured": measured, **paired_difference((own[REFITTED] - own[PLAIN]).dropna().to_numpy())}
        for measured in ("before", "first", "last")
        if {(measured, PLAIN), (measured, REFITTED)} <= set(wide.columns)
        for recipe, own in wide[measured].groupby(level="recipe", sort=False)
    ]
    return pd.DataFrame(rows, columns=["recipe", "measured", "seeds", "difference", "low", "high", "p"])


def recipe_gains(records: Sequence[Record], first: str = "") -> pd.DataFrame:
    """What each recipe is worth beside the first: test accuracy at the end, less that of the first.

    Args:
        first: that recipe in words, by default the first on record.

    Returns:
        A row for each arm and each recipe but the first, paired in each network: recipe, arm, seeds, difference, low,
        high (95 % interval), p (two-sided, not corrected).
    """
    frame = fine_tunings(records)
    wide = frame.pivot_table(index="seed", columns=["arm", "recipe"], values="last", sort=False)
    first = first or next(iter(frame["recipe"]), "")
    rows = [
        {"recipe": recipe, "arm": arm, **paired_difference((ends - wide[arm, first]).dropna().to_numpy())}
        for (arm, recipe), ends in wide.items()
        if recipe != first and (arm, first) in wide
    ]
    return pd.DataFrame(rows, columns=["recipe", "arm", "seeds", "difference", "low", "high", "p"])


def untrained_losses(records: Sequence[Record]) -> pd.DataFrame:
    """Points of test accuracy below the dense network before any fine-tuning, by choice, ratio and network.

    Returns:
        A row for each choice, ratio and dense network: method, ratio, seed, plain, refitted (its convolutions).
    """
    frame = removals_by_network(records)
    lost = frame.assign(plain=frame["dense test"] - frame["none"], refitted=frame["dense test"] - frame["convolution"])
    return lost[["method", "ratio", "seed", PLAIN, REFITTED]]


def explored_findings(records: Sequence[Record], plan: Profile) -> dict[str, str | int]:
    """What the prose quotes, as text; "(not on record)" where nothing is.

    Returns:
        networks: how many are on record; tuned_networks: how many `fine_tunings` has; small, larger: the profile's two
        smallest ratios; flops_small, flops_larger: FLOPs that are left at these; NAME_small, NAME_larger: points that
        the functional choice loses there without any training, NAME in plain and refitted; final: mean test accuracy
        (%) of the refitted networks after the profile's first recipe; kept_I: what is left of the gain of refitting
        after each of its recipes, with its interval; better_I: what each but the first adds to `final`, paired in each
        network.
    """
    recipes = [recipe_in_words(recipe) for recipe in (plan.recovery, *plan.recoveries)]
    lost, tuned = untrained_losses(records), fine_tunings(records)
    kept, better = kept_gains(records), recipe_gains(records, recipes[0])
    networks = {record.spec.dense for record in of_kind(records, Removal) + of_kind(records, Trial)}
    found: dict[str, str | int] = {"networks": len(networks), "tuned_networks": tuned["seed"].nunique()}
    for name, ratio in zip(("small", "larger"), sorted(plan.removal_ratios)[:2], strict=True):
        cell = lost[(lost["method"] == FUNCTIONAL) & (lost["ratio"] == ratio)]
        found |= {name: f"{ratio:g}", f"flops_{name}": f"{100 * flops_left(plan, ratio):.0f} %"}
        for arm in (PLAIN, REFITTED):
            found[f"{arm}_{name}"] = f"{cell[arm].mean():.1f} points" if len(cell) else NOT_ON_RECORD
    ends = tuned.loc[(tuned["recipe"] == recipes[0]) & (tuned["arm"] == REFITTED), "last"]
    found["final"] = _mean(ends)
    for number, recipe in enumerate(recipes):
        found[f"kept_{number}"] = quoted(kept[(kept["recipe"] == recipe) & (kept["measured"] == "last")])
    for number, recipe in enumerate(recipes[1:], 1):
        found[f"better_{number}"] = quoted(better[(better["recipe"] == recipe) & (better["arm"] == REFITTED)])
    return found


def gentle_findings(records: Sequence[Record], plan: Profile) -> dict[str, str | int]:
    """What the prose quotes of the two recipes of a profile at its two ratios; "(not on record)" where nothing is.

    Returns:
        networks: how many are on record; dense: their mean test accuracy; rate: highest rate of the second recipe; and
        for NAME in small, larger: NAME, the ratio; before_NAME and first_NAME, mean test accuracies (%) of the refitted
        networks before fine-tuning, and after the first epoch of the second recipe; ARM_RECIPE_NAME, those after the
        last epoch, ARM in plain, refitted and random, RECIPE in usual and gentle; recovered_NAME: how many of the
        networks of the second recipe recovered.
    """
    by_ratio = records_by_ratio(records)
    found = _networks(records) | {"rate": f"{plan.recoveries[0].peak_rate:g}"}
    for name, ratio in zip(("small", "larger"), sorted(plan.ratios), strict=True):
        ways = _two_ways(fine_tunings(by_ratio.get(ratio, [])), plan)
        found |= {name: f"{ratio:g}", **{f"{key}_{name}": value for key, value in ways.items()}}
    return found


def gentle_narrow_findings(records: Sequence[Record], plan: Profile) -> dict[str, str | int]:
    """What the prose quotes of the fifth question beside the claims; "(not on record)" where nothing is.

    Returns:
        networks, dense, and the keys of `gentle_findings` at the profile's ratio, without its name and without random;
        better_ARM: test accuracy after the last epoch of the second recipe less that of the first, ARM in plain and
        refitted; kept_RECIPE: refitted less plain after the last epoch, RECIPE in usual and gentle; and for each of
        these four answer_NAME: "yes" if its interval lies above zero, "no" if below, otherwise "open".
    """
    better, kept = recipe_gains(records, recipe_in_words(plan.recovery)), kept_gains(records)
    kept = kept[kept["measured"] == "last"]
    cells = {f"better_{arm}": better[better["arm"] == arm] for arm in (PLAIN, REFITTED)}
    cells |= {f"kept_{called}": kept[kept["recipe"] == recipe] for called, recipe in _two_recipes(plan).items()}
    ways = {key: value for key, value in _two_ways(fine_tunings(records), plan).items() if "random" not in key}
    found = _networks(records) | ways | {name: quoted(row) for name, row in cells.items()}
    return found | {f"answer_{name}": answer(row, above=True) for name, row in cells.items()}


def quoted(rows: pd.DataFrame) -> str:
    """The one row as prose quotes it, or that it is not on record."""
    return points(rows.iloc[0]) if len(rows) else NOT_ON_RECORD


def answer(row: pd.DataFrame, above: bool) -> str:
    """The answer that an interval gives to an announced question.

    Args:
        row: seeds, low and high of the cell that was asked about; or no row.
        above: whether an interval above zero means yes, otherwise one below it does.

    Returns:
        "yes", "no" if the interval lies on the other side of zero, or "open": also with fewer than three networks.

    >>> answer(pd.DataFrame([{"seeds": 4, "low": -9.3, "high": -5.5}]), above=False)
    'yes'
    """
    enough = row[row["seeds"] >= LEAST_SEEDS]
    positive, negative = (enough["low"] > 0).any(), (enough["high"] < 0).any()  # NaN is neither
    yes, no = (positive, negative) if above else (negative, positive)
    return YES if yes else NO if no else OPEN


def _networks(records: Sequence[Record]) -> dict[str, str | int]:
    trials = of_kind(records, Trial)
    return {
        "networks": len({trial.spec.dense for trial in trials}),
        "dense": f"{dense_accuracy(records):.1f} %" if trials else NOT_ON_RECORD,
    }


def _two_recipes(plan: Profile) -> dict[str, str]:
    return {"usual": recipe_in_words(plan.recovery), "gentle": recipe_in_words(plan.recoveries[0])}


def _two_ways(tuned: pd.DataFrame, plan: Profile) -> dict[str, str]:
    """The keys of `gentle_findings` that depend on the ratio, without its name, from `fine_tunings` of that ratio."""
    recipes = _two_recipes(plan)
    gentle = tuned[tuned["recipe"] == recipes["gentle"]]
    mended = gentle[gentle["arm"] == REFITTED]
    found = {"before": _mean(mended["before"]), "first": _mean(mended["first"])}
    found["recovered"] = f"{gentle['recovered'].sum()} of {len(gentle)}" if len(gentle) else NOT_ON_RECORD
    for (called, recipe), arm in product(recipes.items(), (PLAIN, REFITTED, CONTROL)):
        own = tuned[(tuned["recipe"] == recipe) & (tuned["arm"] == arm)]
        found[f"{arm.partition(',')[0]}_{called}"] = _mean(own["last"])
    return found


def _mean(percent: pd.Series) -> str:
    return f"{percent.mean():.1f} %" if len(percent) else NOT_ON_RECORD


def flops_left(plan: Profile, ratio: float) -> float:
    """Share of the FLOPs of the profile's network that uniform pruning at a ratio leaves.

    Example:
        >>> from topoprune.study import profile
        >>> round(flops_left(profile("pilot"), 0.5), 2)
        0.26
    """
    model, images = build("vgg16", width=plan.width).eval(), torch.zeros(2, 3, 32, 32)
    small = remove(model, images, select(model, images, "l1", ratio, check=False), check=False)
    return flops(small, images) / flops(model, images)
