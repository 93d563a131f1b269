"""What was explored beside the claims: tables, figure and findings follow what was planted."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted import networks
from planted_beyond import removal, trial

from topoprune.report import evidence, figures, tables
from topoprune.report.evidence.explored import recipe_in_words
from topoprune.study import PROFILES, Removal, Trial
from topoprune.study.profiles import COMPENSATED, FUNCTIONAL_CHOICE

PLAN = PROFILES["beyond-explored"]
RECIPES = [recipe_in_words(recipe) for recipe in (PLAN.recovery, *PLAN.recoveries)]
KEPT = {RECIPES[0]: 0.0, RECIPES[1]: 1.0, RECIPES[2]: 2.0}


def explored(seeds: int) -> list:
    """Networks of 90 % that lose 10 points by a tenth and 20 by two, 8 less refitted, and keep `KEPT` of refitting."""
    records = networks(seeds)
    for seed in range(seeds):
        for ratio in (0.1, 0.2):
            for name in ("random", FUNCTIONAL_CHOICE):
                records.append(removal(name, ratio, seed, 90 - 100 * ratio, 8.0, 0.2, 0.3))
        for recipe in (PLAN.recovery, *PLAN.recoveries):
            for name in (FUNCTIONAL_CHOICE, FUNCTIONAL_CHOICE + COMPENSATED):
                kept = KEPT[recipe_in_words(recipe)] * name.endswith(COMPENSATED)
                made = trial(name, 0.5, seed, 80 + seed + kept, 0.3)
                records.append(dataclasses.replace(made, spec=dataclasses.replace(made.spec, recovery=recipe)))
    return records


def test_what_is_left_of_the_gain_is_paired_within_a_network():
    kept = evidence.kept_gains(explored(3)).query("measured == 'last'").set_index("recipe")
    assert kept["difference"].to_dict() == pytest.approx(KEPT) and set(kept["seeds"]) == {3}


def lacking(records: list, seeds: set[int], recipe=PLAN.recovery, arms=("", "convolution")) -> list:
    """The records without a recipe's trials of some networks."""
    return [
        one
        for one in records
        if not isinstance(one.spec, Trial)
        or one.spec.recovery != recipe
        or one.spec.dense.seed not in seeds
        or one.spec.compensation not in arms
    ]


def test_means_side_by_side_are_those_of_the_same_networks():
    """Network 0, two points below the mean of all four, lacks the last recipe alone."""
    first, *others = explored(4)
    first = dataclasses.replace(first, result={**first.result, "test": 0.8})  # drawn, its dense accuracy would show
    records = [first, *lacking(others, {0}, PLAN.recoveries[-1])]
    table = tables.fine_tunings_table(records)
    assert table["plain (%)"].tolist() == ["82.0 ± 2.5"] * 3 and table["networks"].tolist() == [3] * 3
    assert table["recovered"].str.endswith(" of 6").all()
    assert set(evidence.kept_gains(records)["seeds"]) == {3}
    found = evidence.explored_findings(records, PLAN)
    assert (found["networks"], found["tuned_networks"], found["final"]) == (4, 3, "82.0 %")
    figure = figures.ways_of_fine_tuning(records)
    assert set(figure.data["seed"]) == {1, 2, 3}
    assert figure.axes[0].lines[-1].get_ydata()[0] == pytest.approx(90.0)
    assert figure.legends[0].get_title().get_text() == "means over the same 3 networks"


def test_where_no_network_has_all_recipes_each_recipe_keeps_its_own():
    records = lacking(lacking(explored(3), {0, 1}), {2}, PLAN.recoveries[-1])
    table = tables.fine_tunings_table(records).set_index("recipe")
    assert table.loc[RECIPES, "networks"].tolist() == [1, 3, 2]
    figure = figures.ways_of_fine_tuning(records)
    assert figure.legends[0].get_title().get_text() == "means over different networks, 3 in all"


def test_recipes_are_compared_with_the_first_on_the_networks_that_all_have():
    gains = evidence.recipe_gains(lacking(explored(4), {3}, arms=("convolution",))).set_index(["arm", "recipe"])
    assert gains["difference"].to_dict() == pytest.approx(
        {(arm, recipe): KEPT[recipe] * (arm == "refitted") for arm in ("plain", "refitted") for recipe in RECIPES[1:]}
    )
    assert set(gains["seeds"]) == {3}


def test_recipes_differ_in_words():
    assert RECIPES == ["peak rate 0.05", "peak rate 0.05, teacher", "peak rate 0.015, no warm-up, teacher"]


def test_points_are_lost_against_the_dense_network():
    lost = evidence.untrained_losses(explored(2)).set_index(["method", "ratio", "seed"])
    assert lost.loc[("random", 0.1, 0)].tolist() == pytest.approx([10, 2])
    assert lost.loc[(evidence.FUNCTIONAL, 0.2, 1)].tolist() == pytest.approx([20, 12])


def test_tables_have_a_line_for_each_choice_and_each_recipe():
    untrained, tuned = tables.untrained_table(explored(3)), tables.fine_tunings_table(explored(3))
    assert untrained.to_dict("records")[0] == {
        "choice": "random",
        "0.1, plain": "10.0 ± 0.0",
        "0.1, refitted": "2.0 ± 0.0",
        "0.2, plain": "20.0 ± 0.0",
        "0.2, refitted": "12.0 ± 0.0",
    }
    assert tuned["recipe"].tolist() == RECIPES and tuned["at the end"].tolist() == [
        "+0.0 ± 0.0",
        "+1.0 ± 0.0",
        "+2.0 ± 0.0",
    ]
    assert tuned["refitted, less the first recipe"].tolist() == ["", "+1.0 ± 0.0", "+2.0 ± 0.0"]
    assert tuned["plain (%)"].tolist() == ["81.0 ± 2.5"] * 3


def test_the_figure_has_a_line_for_each_recipe_and_arm():
    figure = figures.ways_of_fine_tuning(explored(2))
    (axes,) = figure.axes
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert names == {f"{recipe}; {arm}" for recipe in RECIPES for arm in ("plain", "refitted")}
    ends = {line.get_label(): line.get_ydata()[-1] for line in axes.lines if line.get_label() in names}
    assert ends[f"{RECIPES[2]}; refitted"] - ends[f"{RECIPES[2]}; plain"] == pytest.approx(2)


@pytest.mark.parametrize("records", [[], networks(2)], ids=["none", "dense"])
def test_without_records_everything_keeps_its_columns_and_its_keys(records):
    full = explored(2)
    for make in (evidence.fine_tunings, evidence.kept_gains, evidence.recipe_gains, evidence.untrained_losses):
        pd.testing.assert_index_equal(make(records).columns, make(full).columns)
    assert tables.fine_tunings_table(records).empty and tables.untrained_table(records).empty
    assert figures.ways_of_fine_tuning(records).data.empty
    assert evidence.explored_findings(records, PLAN).keys() == evidence.explored_findings(full, PLAN).keys()


@pytest.mark.parametrize("missing", [Trial, Removal])
def test_findings_are_text_that_a_sentence_can_hold(missing):
    found = evidence.explored_findings(explored(3), PLAN)
    assert (found["plain_small"], found["refitted_larger"]) == ("10.0 points", "12.0 points")
    assert found["kept_1"].startswith("+1.0 points") and found["final"] == "81.0 %"
    assert found["better_2"].startswith("+2.0 points")
    assert found["flops_small"] == "83 %"
    part = [record for record in explored(3) if not isinstance(record.spec, missing)]
    assert "nan" not in " ".join(map(str, evidence.explored_findings(part, PLAN).values()))


def test_without_the_first_recipe_the_others_add_to_nothing():
    found = evidence.explored_findings(lacking(explored(3), {0, 1, 2}), PLAN)
    assert found["final"] == found["better_2"] == "(not on record)" and found["kept_2"].startswith("+2.0 points")


def test_one_arm_alone_has_no_gain():
    plain = [one for one in explored(2) if not (isinstance(one.spec, Trial) and one.spec.compensation)]
    assert evidence.kept_gains(plain).empty
    assert tables.fine_tunings_table(plain)["at the end"].tolist() == [""] * 3


GENTLE = PROFILES["beyond-gentle"]
ENDS = {
    ("plain", "usual"): 91.0,
    ("plain", "gentle"): 91.5,
    ("refitted", "usual"): 91.6,
    ("refitted", "gentle"): 92.5,
    ("random", "usual"): 90.5,
    ("random", "gentle"): 92.0,
}
"""(arm, recipe) -> test accuracy (%) at the end, at ratio 0.3; at 0.5 it is ten points less."""
ARMS = {"plain": FUNCTIONAL_CHOICE, "refitted": FUNCTIONAL_CHOICE + COMPENSATED, "random": "random"}


def gentle(ratios=(0.3, 0.5)) -> list:
    """One network of 90 %, whose cover is fine-tuned by two recipes at two ratios."""
    records = networks(1)
    for ratio in ratios:
        for called, recipe in zip(("usual", "gentle"), (GENTLE.recovery, *GENTLE.recoveries), strict=True):
            for arm, name in ARMS.items():
                made = trial(name, ratio, 0, ENDS[arm, called] - 10 * (ratio == 0.5), 0.3)
                records.append(dataclasses.replace(made, spec=dataclasses.replace(made.spec, recovery=recipe)))
    return records


def test_gentler_fine_tuning_is_quoted_by_ratio_recipe_and_arm():
    found = evidence.gentle_findings(gentle(), GENTLE)
    assert (found["small"], found["larger"], found["rate"], found["networks"]) == ("0.3", "0.5", "0.015", 1)
    quoted = {name: value for name, value in found.items() if "usual" in name or "gentle" in name}
    assert quoted == {
        f"{arm}_{recipe}_{name}": f"{end - less:.1f} %"
        for name, less in (("small", 0), ("larger", 10))
        for (arm, recipe), end in ENDS.items()
    }
    assert found["dense"] == "90.0 %" and found["recovered_small"].endswith(" of 3")


def test_gentler_fine_tuning_has_a_panel_and_rows_for_each_ratio():
    figure, table = figures.ways_of_fine_tuning(gentle()), tables.fine_tunings_by_ratio_table(gentle())
    assert [axes.get_title() for axes in figure.axes] == ["ratio 0.3", "ratio 0.5"]
    ends = {line.get_label(): line.get_ydata()[-1] for line in figure.axes[0].lines}
    last = recipe_in_words(GENTLE.recoveries[0])
    assert {ends[f"{last}; {arm}"] for arm in ("refitted", "plain", "random, plain")} == {92.5, 91.5, 92.0}
    assert table["ratio"].tolist() == ["0.3", "0.3", "0.5", "0.5"]
    assert table["refitted, less the first recipe"].tolist() == ["", "+0.9", "", "+0.9"]
    assert table["refitted (%)"].tolist() == ["91.6", "92.5", "81.6", "82.5"]
    assert table["random, plain (%)"].tolist() == ["90.5", "92.0", "80.5", "82.0"]


@pytest.mark.parametrize("records", [[], networks(2), gentle((0.3,))], ids=["none", "dense", "one ratio"])
def test_what_is_missing_of_gentler_fine_tuning_is_said(records):
    found = evidence.gentle_findings(records, GENTLE)
    assert found.keys() == evidence.gentle_findings(gentle(), GENTLE).keys()
    assert found["refitted_gentle_larger"] == found["recovered_larger"] == "(not on record)"
    assert "nan" not in " ".join(map(str, found.values()))
    columns = tables.fine_tunings_by_ratio_table(gentle()).columns
    columns = columns if len(records) > 2 else columns.drop("random, plain (%)")
    pd.testing.assert_index_equal(tables.fine_tunings_by_ratio_table(records).columns, columns)


NARROW = PROFILES["beyond-gentle-quarter"]
GAINS = {("plain", "usual"): 83.0, ("plain", "gentle"): 82.0, ("refitted", "usual"): 83.0, ("refitted", "gentle"): 84.0}
"""(arm, recipe) -> test accuracy (%) at the end, on average over the networks."""


def narrow(seeds: int) -> list:
    """Networks whose cover ends at `GAINS`, with other steps between networks for each arm and recipe."""
    records = networks(seeds)
    for seed in range(seeds):
        for number, ((arm, called), end) in enumerate(GAINS.items()):
            recipe = NARROW.recovery if called == "usual" else NARROW.recoveries[0]
            made = trial(ARMS[arm], 0.3, seed, end + 0.1 * (number + 1) * (seed - (seeds - 1) / 2), 0.3)
            records.append(dataclasses.replace(made, spec=dataclasses.replace(made.spec, recovery=recipe)))
    return records


def test_the_fifth_question_is_answered_by_intervals_of_paired_differences():
    found = evidence.gentle_narrow_findings(narrow(4), NARROW)
    paired = np.array([0.1 * (seed - 1.5) for seed in range(4)])  # refitted: the steps 0.3 and 0.4 differ by 0.1
    low, high = scipy.stats.t.interval(0.95, 3, loc=1, scale=scipy.stats.sem(paired))
    assert found["better_refitted"] == f"+1.0 points (95 % interval {low:+.1f} to {high:+.1f})"
    answers = {name.removeprefix("answer_"): value for name, value in found.items() if name.startswith("answer")}
    assert answers == {"better_plain": "no", "better_refitted": "yes", "kept_usual": "open", "kept_gentle": "yes"}
    assert (found["networks"], found["plain_gentle"], found["refitted_gentle"]) == (4, "82.0 %", "84.0 %")
    assert found["recovered"].endswith(" of 8")


@pytest.mark.parametrize("records", [[], networks(2), narrow(2)], ids=["none", "dense", "two"])
def test_with_fewer_than_three_networks_the_fifth_question_stays_open(records):
    found = evidence.gentle_narrow_findings(records, NARROW)
    assert found.keys() == evidence.gentle_narrow_findings(narrow(4), NARROW).keys()
    assert {value for name, value in found.items() if name.startswith("answer")} == {"open"}
    assert "nan" not in " ".join(map(str, found.values()))
