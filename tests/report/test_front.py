"""The front page: what its sentences say holds of the published records, and its pictures show each test."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import METHODS, RATIOS, planted

from topoprune import study
from topoprune.files import FileError
from topoprune.report import evidence, figures, frames, tables
from topoprune.study import grid
from topoprune.study.profiles import COMPENSATED

NETWORKS = 10
"""Of a quarter of the width, on record at ratio 0.5."""


@pytest.fixture(scope="module")
def published():
    return study.published_records("study"), study.published_records("beyond-quarter")


def test_its_three_sentences_hold(published):
    """Competes, and so does chance; close diagrams gain nothing; refitting lifts all choices, and is forgotten."""
    found = evidence.front_findings(*published)
    assert (found["networks"], found["beyond_networks"]) == (3, NETWORKS)
    assert abs(found["over_random"]) < 0.25 and found["quarter_over_random"] < -0.25
    assert found["thesis_distance"] < found["random_distance"] and found["thesis"] < found["random"]
    assert found["cover_over_random"] > 1 and abs(found["cover_over_l1"]) < 0.5 and 80 < found["dense"] < 90
    after = tables.trials(published[1]).query("ratio == 0.5").groupby("method")["test"].mean()
    for name in ("random", "FPGM", evidence.FUNCTIONAL, "pivoted QR"):
        assert abs(after[name + COMPENSATED] - after[name]) < 0.25
    kept = evidence.kept_gains(study.published_records("beyond-explored")).query("measured == 'last'")
    assert len(kept) == 3 and (kept["seeds"] >= 3).all() and (kept["difference"].abs() < 0.5).all()
    lost = evidence.untrained_losses(study.published_records("beyond-explored")).query("method == @evidence.FUNCTIONAL")
    assert lost.groupby("ratio")["refitted"].mean().round().to_dict() == {0.1: 1, 0.2: 2}


def test_refitting_helps_more_than_any_choice(published):
    """The worst refitted choice leaves more than the best one as removed, on either width."""
    for records in (published[1], study.published_records("beyond")):
        half = frames.removals_by_network(records).query("ratio == 0.5").groupby("method").mean()
        assert half["convolution"].min() > half["none"].max() + 20
        gained = half["convolution"] - half["none"]
        assert gained.min() > (half["none"].max() - half["none"].min())


def test_recovery_was_reached_with_twenty_epochs_alone(published):
    """ "No network of full width recovered within five epochs, so times could be compared only with 20 epochs." """
    for name, recovered in (("study", 0), ("ablation", 0), ("beyond-quarter", 1)):
        frame = tables.trials(study.published_records(name))
        assert study.profile(name).recovery.epochs == 5 and frame["recovered"].sum() == recovered
    assert study.profile("recovery").recovery.epochs == 20
    assert tables.trials(study.published_records("recovery"))["recovered"].all()


def test_its_numbers_are_those_of_an_independent_count(published):
    thesis, beyond = published
    found = evidence.front_findings(*published)
    wide = pd.DataFrame(
        [
            (one.spec.ratio, one.spec.seed, one.spec.method, 100 * one.result["history"][-1]["test"])
            for one in thesis
            if isinstance(one.spec, study.Trial)
            and not one.spec.options.get("space")
            and not one.spec.options.get("pointed")
        ],
        columns=["ratio", "seed", "method", "test"],
    ).pivot_table(index=["ratio", "seed"], columns="method", values="test")
    pairs = (wide["topological"] - wide["random"]).dropna().groupby("ratio").mean()
    assert found["over_random"] == pytest.approx(pairs.mean())
    after = {
        (one.spec.method, one.spec.options.get("search")): [] for one in beyond if isinstance(one.spec, study.Trial)
    }
    for one in beyond:
        if isinstance(one.spec, study.Trial) and one.spec.ratio == 0.5 and not one.spec.compensation:
            after[one.spec.method, one.spec.options.get("search")].append(100 * one.result["history"][-1]["test"])
    mean = {key: np.mean(values) for key, values in after.items() if values}
    assert found["cover_over_l1"] == pytest.approx(mean["topological", "cover"] - mean["l1", None])
    assert found["quarter_over_random"] == pytest.approx(mean["topological", None] - mean["random", None])
    table = tables.steps_table(beyond).set_index("choice")
    for key, name in ((("topological", "cover"), "the cover"), (("random", None), "random removal")):
        assert table.loc[name, "fine-tuned"].split(" ± ")[0] == f"{mean[key]:.1f}"


def test_hours_are_those_of_the_records():
    records = planted(seeds=2)
    assert evidence.hours(records) == pytest.approx(sum(one.provenance["seconds"] for one in records) / 3600)


def judged(**effects) -> pd.DataFrame:
    plan = replace(study.profile("study"), ratios=RATIOS, methods=METHODS)
    return evidence.verdicts(planted(seeds=5, **effects), "study", plan)


@pytest.fixture(scope="module")
def verdicts():
    return judged(advantage=-2)


def test_the_forest_has_a_row_for_each_test_on_record(verdicts):
    figure = figures.verdict_forest(verdicts)
    on_record = verdicts[verdicts["difference"].notna()]
    assert len(figure.axes) == len(on_record) < len(verdicts)  # the longer fine-tuning is not on record
    for axes, row in zip(figure.axes, on_record.to_dict("records"), strict=True):
        dot = axes.lines[-1]
        assert dot.get_xdata()[0] == pytest.approx(row["difference"])
        assert axes.get_title("left").startswith(row["claim"]) and axes.get_title("right") == row["verdict"]
        low, high = axes.get_xlim()
        assert low < row["difference"] < high and low < row["bound"] < high


def test_an_effect_on_the_shaded_side_speaks_for_the_claim(verdicts):
    """A cell that refutes lies outside of the shade, one that supports inside, wherever the bound is."""
    table = pd.concat([verdicts, judged(hurt=-3)])
    table = table[(table["side"] != 0) & (table["claim"] != "5")]  # claim 5 has a rule of its own
    inside = (table["side"] * (table["difference"] - table["bound"])) > 0
    assert set(table["verdict"]) >= {"supported", "not supported"}
    assert inside[table["verdict"] == "supported"].all() and not inside[table["verdict"] == "not supported"].any()


def test_a_card_for_each_claim_says_its_verdict_and_effect(verdicts):
    cards = tables.verdict_cards(verdicts, "conclusion")
    first = verdicts.drop_duplicates("claim")
    assert cards.count("grid-item-card") == len(first) == 6
    for row in first.to_dict("records"):
        assert (
            f"{row['claim']} · {row['name']}" in cards and row["effect"] in cards and f"**{row['verdict']}**" in cards
        )


def test_nothing_is_lost_behind_the_brief_table_of_verdicts(verdicts):
    brief, whole = tables.verdict_table(verdicts), tables.verdicts_in_words(verdicts)
    assert len(brief) == len(whole) == len(verdicts) and brief["effect"].tolist() == whole["effect"].tolist()
    assert {"tested", "command"} <= set(whole) and "others" not in whole


def test_published_records_do_not_follow_the_environment(monkeypatch, tmp_path, published):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tmp_path))
    assert [one.key for one in study.published_records("study")] == [one.key for one in published[0]]
    monkeypatch.setattr(grid, "PUBLISHED", tmp_path)
    with pytest.raises(FileError, match="no records of the profile study: run this in a checkout"):
        study.published_records("study")
