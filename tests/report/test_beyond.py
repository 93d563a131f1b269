"""The chapter beyond the thesis: verdicts follow what was planted, and everything draws from what is on record."""

import numpy as np
import pandas as pd
import pytest
from planted import networks
from planted_beyond import PLAN, RATIOS, beyond, clouds, removal, trial

from topoprune.files import FileError
from topoprune.report import evidence, figures, frames, notebook, tables
from topoprune.report.evidence import FUNCTIONAL, beyond_claims, beyond_explanation, statistics
from topoprune.study import Removal, Trial
from topoprune.study.profiles import CHOICES, COMPENSATED, FUNCTIONAL_CHOICE

FIGURES = [
    figures.choices_compared,
    figures.clouds_by_layer,
    figures.damage_by_choice,
    figures.difference_forest,
    figures.functional_barcode,
    figures.lost_mass_plot,
    figures.mended_curves,
    figures.mended_survival,
]
TABLES = [tables.fine_tuned_table, tables.gain_table, tables.mending_table, tables.steps_table]
EVIDENCE = [
    evidence.mending_gains,
    evidence.lasting_gains,
    evidence.rivals,
    evidence.sooner,
    evidence.explained,
    evidence.explained_by_cell,
    evidence.explained_over_networks,
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Planted records have no published numbers to keep, and workers of tests side by side have a core each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "PUBLISHED_THREADS", 1)
        yield


@pytest.fixture(scope="module")
def records():
    return beyond(seeds=4, link=5.0)


CLAIMS = {
    "B1": beyond_claims.mends,
    "B2": beyond_claims.lasts,
    "B3": beyond_claims.equals_rivals,
    "B4": beyond_claims.recovers_sooner,
    "B5": lambda records: beyond_claims.explains(records, PLAN),
}


def verdict(claim: str, records) -> pd.Series:
    return pd.Series(CLAIMS[claim](records))


def without(records, kind, **fields):
    return [
        one
        for one in records
        if not (isinstance(one.spec, kind) and all(getattr(one.spec, name) == value for name, value in fields.items()))
    ]


@pytest.mark.parametrize(
    "claim, planted, expected",
    [
        ("B1", {"gain": 30.0}, "supported"),
        ("B1", {"gain": -5.0}, "not supported"),
        ("B1", {"gain": 0.8, "noise": 1.0}, "undecided"),
        ("B2", {"lead": 2.0}, "supported"),
        ("B2", {"lead": -2.0}, "not supported"),
        ("B2", {"lead": 0.1, "noise": 2.0}, "undecided"),
        ("B3", {}, "supported"),
        ("B3", {"over_qr": 3.0, "before": 8.0}, "supported"),
        ("B3", {"over_qr": -3.0}, "not supported"),
        ("B3", {"before": -8.0}, "not supported"),
        ("B3", {"noise": 3.0}, "undecided"),
        ("B4", {"saved": 2}, "undecided"),  # equal times have no spread
    ],
)
def test_verdicts_follow_what_was_planted(claim, planted, expected):
    row = verdict(claim, beyond(seeds=5, **planted))
    assert row["verdict"] == expected and row["seeds"] == 5


@pytest.mark.parametrize("claim", ["B1", "B2", "B3", "B5"])
def test_two_networks_decide_nothing(claim):
    for planted in ({}, {"gain": -5.0, "lead": -2.0, "over_qr": -3.0}):
        row = verdict(claim, beyond(seeds=2, link=5.0, **planted))
        assert row["verdict"] == "undecided" and row["cells"].startswith("0 of ")


@pytest.mark.parametrize(
    "claim, kind, lacking, cells",
    [
        ("B1", Removal, {"method": "folding"}, "12 of 13"),
        ("B2", Trial, {"method": "fpgm", "compensation": "convolution"}, "6 of 7"),
        ("B3", Removal, {"method": "obs"}, "3 of 4"),
        ("B4", Trial, {"ratio": 0.3}, "0 of 1"),
    ],
)
def test_a_cell_that_is_not_on_record_keeps_a_claim_undecided(claim, kind, lacking, cells):
    row = verdict(claim, without(beyond(seeds=5), kind, **lacking))
    assert (row["verdict"], row["cells"]) == ("undecided", cells)


def test_one_choice_that_gains_nothing_leaves_the_first_claim_undecided_and_one_that_loses_refutes_it():
    random = np.random.default_rng(0)
    for change, expected in ((-30.0, "undecided"), (-40.0, "not supported")):
        records = beyond(seeds=5)
        for one in records:
            if isinstance(one.spec, Removal) and one.spec.method == "qr":
                one.result["accuracy"]["convolution"]["test"] += (change + random.normal()) / 100
        row = verdict("B1", records)
        assert row["verdict"] == expected
        assert "pivoted QR, ratio 0.5" in row["effect"]


def timed(plain: list[int], mended: list[int]) -> list:
    """Networks whose runs recover in these epochs; 5 is never."""
    return networks(len(plain)) + [
        trial(name + end, 0.3, seed, 80, 0.5, epochs)
        for end, times in (("", plain), (COMPENSATED, mended))
        for seed, epochs in enumerate(times)
        for name in ("random", "fpgm", FUNCTIONAL_CHOICE, "qr")
    ]


@pytest.mark.parametrize(
    "plain, mended, expected",
    [
        ([5, 4, 5, 5], [1, 1, 2, 1], "supported"),
        ([1, 1, 2, 1], [5, 4, 5, 5], "not supported"),
        ([5, 5, 5, 5], [5, 5, 5, 5], "undecided"),  # nothing recovers
        ([4, 2, 3, 4], [2, 4, 4, 2], "undecided"),
        ([5, 4], [1, 1], "undecided"),
    ],
)
def test_compensated_networks_recover_sooner(plain, mended, expected):
    assert verdict("B4", timed(plain, mended))["verdict"] == expected


def test_recovery_is_averaged_over_the_four_choices_within_a_network():
    records = timed([5, 4, 5], [1, 1, 2])
    table = evidence.sooner(records).set_index("method")
    assert table.loc["mean of the four", ["seeds", "recovered"]].tolist() == [3, 4 * 4]
    assert table.loc["mean of the four", "difference"] == pytest.approx(-10 / 3)
    lacking = without(records, Trial, method="qr", seed=0)
    assert evidence.sooner(lacking).set_index("method").loc["mean of the four", "seeds"] == 2


def test_cells_of_the_rivals_say_equivalent_better_or_worse():
    cells = evidence.rivals(beyond(seeds=5, over_qr=3.0, before=-8.0))
    cells = cells[cells["primary"]].set_index(["measured", "rival"])["verdict"]
    assert set(cells["after fine-tuning"]) == {"better"}
    assert set(cells["before fine-tuning, convolution"]) == {"worse"}
    assert set(evidence.rivals(beyond(seeds=5, over_qr=0.2))["verdict"]) == {"equivalent"}


def test_equivalence_is_corrected_over_the_cells_of_the_test():
    cells = evidence.rivals(beyond(seeds=3, noise=0.2)).query("primary")
    within = (cells["low"] >= -cells["margin"]) & (cells["high"] <= cells["margin"])
    equivalent = cells["verdict"] == "equivalent"
    assert (equivalent == (cells["p"] < 0.05)).all()
    assert (within & ~equivalent).any()  # an interval within the margin is not enough


def test_one_sided_p_values_are_corrected_over_the_cells_of_the_test():
    records = beyond(seeds=3, gain=1.0, noise=1.0)
    wide = frames.removals(records).query("ratio == 0.5").set_index(["seed", "method"])
    gains = (wide["convolution"] - wide["none"]).unstack("method")
    primary = evidence.mending_gains(records).query("primary").set_index("method")["p"]
    raw = pd.Series({method: statistics.p_above(gains[method]) for method in gains})
    assert primary.to_dict() == pytest.approx(dict(zip(raw.index, statistics.holm(raw), strict=True)))


def test_draws_of_a_random_choice_are_averaged_within_a_network():
    draws = [removal("random", 0.5, 0, none, 10, 0.5, 0.5, draw) for draw, none in enumerate((10.0, 20.0, 30.0))]
    frame = frames.removals_by_network([*networks(1), *draws])
    assert frame["none"].tolist() == [pytest.approx(20)] and frame["seed"].tolist() == [0]


@pytest.mark.parametrize(
    "planted, verdicts",
    [
        ({"link": 8.0}, {"supported"}),
        ({"link": 8.0, "by": "distance"}, {"not supported"}),
        ({"link": 0.0}, {"undecided"}),
        ({"link": -8.0}, {"not supported"}),  # of the wrong sign
    ],
)
def test_the_lost_mass_explains_if_it_tells_accuracy_and_nothing_simpler_does(planted, verdicts):
    table = evidence.explained(beyond(seeds=4, **planted))
    found = {beyond_explanation.accuracy_verdict(table, target) for target in beyond_explanation.ACCURACIES}
    assert found == verdicts


def test_a_slope_of_each_network_tells_what_was_planted():
    planted = beyond(seeds=4, link=8.0)
    table = evidence.explained_over_networks(planted).query("predictor == 'lost mass'").set_index("target")
    spread = evidence.losses(planted).groupby("target")["lost mass"].std()
    assert (table["effect"] / spread).to_dict() == pytest.approx(dict.fromkeys(spread.index, -8.0), abs=0.2)
    assert set(table["seeds"]) == {4} and (table["p"] < 0.01).all()
    one_ratio = [one for one in planted if getattr(one.spec, "ratio", 0.5) == 0.5]
    assert evidence.explained_over_networks(one_ratio)["effect"].isna().all()  # ratio and method are all there is


def test_effects_by_cell_are_those_of_least_squares_with_a_level_for_each_cell():
    planted = beyond(seeds=4, link=8.0, noise=1.0)
    table = evidence.explained_by_cell(planted).query("predictor == 'lost mass'").set_index("target")
    for target, runs in evidence.losses(planted).groupby("target"):
        cells = pd.get_dummies(runs["method"] + runs["ratio"].astype(str)).to_numpy(float)
        factors = np.hstack([cells, pd.get_dummies(runs["seed"].astype(str)).to_numpy(float)])
        x, y = runs["lost mass"].to_numpy(), runs["accuracy"].to_numpy()
        x, y = (v - factors @ np.linalg.lstsq(factors, v, rcond=None)[0] for v in (x, y))
        slope = x @ y / (x @ x) * runs["lost mass"].std()
        row = table.loc[target]
        assert row["partial correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert row["low"] < slope < row["high"]


def test_no_target_is_explained_by_too_few_networks():
    for seeds, verdicts in ((2, {"undecided"}), (3, {"supported"})):
        records = beyond(seeds=seeds, link=8.0)
        assert set(evidence.accuracy_verdicts(records, evidence.explained(records)).values()) == verdicts


def test_an_effect_is_quoted_from_its_row(records):
    table = evidence.explained(records)
    row = table[(table["target"] == "none") & (table["predictor"] == "lost mass")].iloc[0]
    said = evidence.effect_in_words(table, "none", "lost mass")
    assert said == f"{row['effect']:+.1f} points (95 % interval {row['low']:+.1f} to {row['high']:+.1f})"
    assert evidence.effect_in_words(table[:0], "none", "lost mass") == "(not on record)"


def test_choices_that_lose_more_rank_lower(records):
    found = evidence.beyond_findings(beyond(seeds=4, link=20.0, noise=0.0))
    assert found["mass_rank_none"] == found["mass_rank_convolution"] == "-1.00"
    assert abs(float(found["distance_rank_none"])) < 0.9


def test_the_fifth_claim_needs_all_planned_cells():
    whole = beyond(seeds=3, link=8.0)
    assert verdict("B5", whole)[["verdict", "cells"]].tolist() == ["supported", "66 of 66"]
    assert verdict("B5", whole[:-1])["verdict"] == "supported"  # a compensated trial is no cell of it
    lacking = without(whole, Trial, method="l2", ratio=0.3)
    assert verdict("B5", lacking)[["verdict", "cells"]].tolist() == ["undecided", "65 of 66"]


def test_a_fine_tuned_run_counts_only_if_its_own_choice_was_measured():
    same = removal("random", 0.5, 0, 20, 10, 0.3, 0.4, draw=1)
    other = removal("random", 0.5, 0, 20, 10, 0.6, 0.7, draw=2)
    run = trial("random", 0.5, 0, 80, 0.4)
    found = evidence.losses([*networks(1), other, same, run]).set_index("target")
    assert found.loc["fine-tuned", "lost mass"] == pytest.approx(0.3)
    assert "fine-tuned" not in set(evidence.losses([*networks(1), other, run])["target"])


def test_frames_without_records_have_the_columns_and_types_of_others(records):
    for make in (frames.removals, frames.cloud_frame):
        empty, full = make([]), make(records)
        assert empty.empty and len(full)
        assert dict(empty.dtypes) == dict(full.dtypes)


def test_clouds_are_described_in_the_order_of_the_network():
    frame = frames.cloud_frame([clouds(0)])
    assert frame["layer"].tolist() == [1, 1, 2, 2]
    assert frame.groupby("space")["spread"].first().to_dict() == pytest.approx({"weights": 0.4, "functional": 0.8})


def test_a_removal_without_its_dense_network_or_of_another_one_is_refused():
    one = removal("qr", 0.5, 0, 20, 10, 0.3, 0.4)
    with pytest.raises(
        FileError, match="removal by qr at ratio 0.5, draw 0, seed 0 has no record of its dense network"
    ):
        frames.removals([one])
    dense = networks(1)[0]
    dense.result["network"], one.result["network"] = "a", "b"
    with pytest.raises(FileError, match="pruned another dense network than the one on record"):
        frames.removals([dense, one])


@pytest.mark.parametrize("make", [*EVIDENCE, *TABLES], ids=lambda make: make.__name__)
@pytest.mark.parametrize("few", [[], networks(2)], ids=["none", "dense"])
def test_without_records_tables_keep_their_first_columns(make, few):
    assert make(few).empty and len(make(few).columns)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_a_figure_without_records_says_so(draw):
    for few in ([], networks(2)):
        figure = draw(few)
        assert [text.get_text() for text in figure.axes[0].texts] == ["nothing on record"]
        assert figure.data.empty and len(figure.data.columns)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("seeds", [1, 4])
def test_a_figure_carries_the_data_that_it_draws(draw, seeds):
    figure = draw(beyond(seeds))
    assert len(figure.data)
    assert all(axes.lines or axes.patches or axes.collections for axes in figure.axes)


def test_the_first_figure_names_few_choices_and_greys_the_others(records):
    figure = figures.damage_by_choice(records)
    [legend] = figure.legends
    named = {text.get_text() for text in legend.get_texts()}
    assert named == {"random", "L1", "FPGM", "topological", FUNCTIONAL, "pivoted QR", "other choices"}
    means = frames.removals_by_network(records).groupby(["method", "ratio"])["none"].mean()
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].lines]
    drawn = [line for line in lines if len(line) == len(RATIOS)]
    assert any(np.allclose(line, means[FUNCTIONAL]) for line in drawn)


def test_intervals_are_drawn_at_ratios_with_three_networks_alone(records):
    """At the second ratio two of the four networks are on record."""
    few = [
        one
        for one in records
        if not isinstance(one.spec, Removal) or one.spec.ratio == RATIOS[0] or one.spec.dense.seed < 2
    ]
    for drawn, places in ((records, list(RATIOS)), (few, [RATIOS[0]])):
        for axes in figures.damage_by_choice(drawn).axes:
            intervals = [bars for container in axes.containers for bars in container.lines[2]]
            assert len(intervals) == 6  # of the choices that are named
            for bars in intervals:
                assert [segment[0][0] for segment in bars.get_segments()] == places
                assert all(low[1] < high[1] for low, high in bars.get_segments())


def test_recovered_networks_are_counted_of_the_four_mended_choices_and_of_all(records):
    found = evidence.beyond_findings(records)
    assert found["plain_recovered"].endswith(" of 16") and found["mended_recovered"].endswith(" of 16")
    assert found["plain_recovered_all"] == f"{7 * 4} of {7 * 4}"
    nothing = evidence.beyond_findings([])
    assert {nothing[key] for key in ("plain_recovered_all", "functional_lost", "l1_lost")} == {"(not on record)"}


def test_tables_have_a_line_for_each_choice_in_the_book_s_order(records):
    names = [frames.NAMES[name] for name in CHOICES]
    for table in (tables.mending_table(records), tables.gain_table(records)):
        assert table["choice"].tolist() == sorted(names, key=list(frames.NAMES.values()).index)
    assert set(tables.mending_table(records)["networks"]) == {4}
    tuned = tables.fine_tuned_table(records).set_index("choice")
    assert tuned.loc["L1", "0.5, compensated (%)"] == "" and "±" in tuned.loc["L1", "0.5, plain (%)"]
    assert "±" not in tables.mending_table(beyond(seeds=2))["none (%)"][0]


def test_the_short_table_has_the_means_of_each_step(records):
    table = tables.steps_table(records).set_index("choice")
    before = frames.removals_by_network(records).query("ratio == 0.5").groupby("method").mean()
    after = frames.trials(records).query("ratio == 0.5").groupby("method")["test"].mean()
    for name, method in {"random removal": "random", "L1": "L1", "the cover": FUNCTIONAL}.items():
        expected = [before.loc[method, "none"], before.loc[method, "convolution"], after[method]]
        expected += [after[method + COMPENSATED]] if method + COMPENSATED in after else []
        cells = [cell.split(" ± ") for cell in table.loc[name] if cell]
        assert [mean for mean, _ in cells] == [f"{value:.1f}" for value in expected]
    assert table.loc["L1", "both"] == "" and list(table.loc["optimal brain surgeon"] == "") == [
        False,
        False,
        True,
        True,
    ]


def test_the_cells_beside_the_deciding_one_have_its_margin(records):
    """B3 allows half a point after fine-tuning and two points before it: one bound cannot stand for both."""
    row = verdict("B3", records)
    table = evidence.rivals(records)
    same = table[table["primary"].astype(bool) & (table["margin"] == -row["bound"])]
    assert len(row["others"]) == len(same) == 2
    assert [difference for difference, _, _ in row["others"]] == same["difference"].tolist()


def test_how_many_networks_stand_behind_each_ratio_is_said():
    records = without(beyond(seeds=3), Trial, ratio=0.3, seed=2)
    assert tables.networks_by_ratio(records) == "3 at 0.5, 2 at 0.3"
    lost = without(records, Removal, ratio=0.5, dense=records[0].spec)
    assert tables.networks_by_ratio(lost, before=True) == "3 at 0.3, 2 at 0.5"
    assert tables.networks_by_ratio([]) == "none"


def test_the_table_has_a_row_for_each_claim():
    table = evidence.beyond_verdicts(networks(1), PLAN)
    assert table["claim"].tolist() == ["B1", "B2", "B3", "B4", "B5"]
    assert table["cells"].tolist() == ["0 of 13", "0 of 7", "0 of 4", "0 of 1", "0 of 66"]
    assert set(table["verdict"]) == {"undecided"} and set(table["interval"]) == {"none: not on record"}


def test_findings_are_text_that_a_sentence_can_hold(records):
    found, nothing = evidence.beyond_findings(records), evidence.beyond_findings([])
    assert found.keys() == nothing.keys()
    assert (found["networks"], found["dense"], found["choice"]) == (4, "90.0 %", FUNCTIONAL)
    assert found["mended_recovered"] == "16 of 16" and nothing["mended_recovered"] == "(not on record)"
    assert found["spread_functional"] == "80.0 %"
    assert "nan" not in " ".join(map(str, [*found.values(), *nothing.values()]))


def test_a_chapter_shows_a_sentence_where_its_companion_is_not_on_record(folders, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle["text/markdown"]))
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    assert notebook.companion_records("study", "beyond") == []
    with pytest.raises(FileError, match="force would discard records"):
        notebook.companion_records("study", "beyond", force=True)
    notebook.say_if_missing([], "beyond-quarter")
    notebook.say_if_missing(networks(1), "beyond-quarter")
    assert len(shown) == 1 and "python -m topoprune run --profile beyond-quarter" in shown[0]


def test_records_of_today_have_what_the_chapter_reads(tiny_beyond):
    assert frames.removals(tiny_beyond).notna().all(axis=None)
    assert set(frames.cloud_frame(tiny_beyond)["layer"]) == set(range(1, 14))
    assert set(evidence.losses(tiny_beyond)["target"]) == set(beyond_explanation.ACCURACIES)
    for draw in FIGURES:
        assert draw(tiny_beyond).data is not None
    for make in (*EVIDENCE, *TABLES):
        assert len(make(tiny_beyond).columns)
    assert set(evidence.beyond_verdicts(tiny_beyond, PLAN)["verdict"]) == {"undecided"}
