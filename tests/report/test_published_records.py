"""Real records: the committed ones, and those that the code of today makes."""

from pathlib import Path

import pytest

from topoprune import study
from topoprune.report import evidence, figures, frames, tables
from topoprune.report.evidence import statistics
from topoprune.study.profiles import COMPENSATED

ROOT = Path(__file__).parents[2]
PUBLISHED, README = ROOT / "book" / "results", (ROOT / "README.md").read_text()


@pytest.fixture
def published(monkeypatch):
    """The committed records of the study: dense networks and trials."""
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(PUBLISHED))
    monkeypatch.setenv("TOPOPRUNE_NO_RUN", "1")
    return study.records("study", [*study.dense_specs("study"), *study.trial_specs("study")])


def test_what_the_readme_and_our_reading_say_is_on_record(published):
    """Random removal ends within a tenth of a point of the topological pruner, in the mean over the ratios."""
    table = evidence.accuracy_equivalence(published, second=["random", *evidence.RIVALS])
    mean = table.groupby("rival")["difference"].mean()
    assert mean["random"] == pytest.approx(0.1, abs=0.01)
    assert mean[list(evidence.RIVALS)].mean() == pytest.approx(0.5, abs=0.05)
    wide = frames.trials(published).pivot_table(index=["ratio", "seed"], columns="method", values="test")
    ahead = -wide[["topological", "L1", "L2", "FPGM"]].xs(0.5).sub(wide["global Taylor"].xs(0.5), axis=0)
    assert len(ahead) == 3 and (ahead > 0).all(axis=None) and ahead.mean().round(1).between(0.5, 0.6).all()
    over_l1 = (wide[["topological", "random"]].sub(wide["L1"], axis=0)).groupby("ratio").mean().max()
    assert over_l1.round(1).to_dict() == {"topological": 1.2, "random": 0.8}
    over_l1 = (wide[["topological", "random"]].sub(wide["L1"], axis=0)).groupby("ratio").mean().mean()
    assert over_l1.round(1).to_dict() == {"topological": 0.5, "random": 0.4}
    searched = frames.trials(published).query("method == 'topological'")
    assert (searched["selection seconds"] / searched["epoch seconds"]).between(0.33, 0.7).all()


def test_what_the_limits_say_of_muon_is_on_record(published):
    """One network of each kind at ratio 0.9: the topological pruner goes from first to last."""
    other = study.companion_records("study", "contrast")
    table = tables.optimizers_table(published, other).set_index("method")
    muon, sgd = table["Muon: fine-tuned (%)"], table["SGD: fine-tuned (%)"]
    assert muon.idxmax() == sgd.idxmin() == "topological" and set(table["SGD: networks"]) == {1}


def test_what_the_readme_says_beyond_the_thesis_is_on_record(published):
    """Points at ratio 0.5 after fine-tuning, and accuracy before it, of ten networks."""
    records = study.companion_records("study", "beyond")
    found = evidence.front_findings(published, records)
    assert found["beyond_networks"] == 10
    rounded = {name: round(value, 1) for name, value in found.items() if "_over_" in name and "_words" not in name}
    assert rounded == {
        "l1_over_random": -0.4,
        "half_over_random": -0.2,
        "quarter_over_random": -0.5,
        "quarter_l1_over_random": 1.1,
        "cover_over_random": 1.2,
        "cover_over_l1": 0.1,
        "cover_over_qr": 0,
    }
    assert round(found["over_random"], 1) == 0.1
    assert found["quarter_interval"] == "95 % interval -1.0 to -0.1"
    assert found["removed_interval"] == "95 % interval -4.4 to +0.5"
    assert found["cover_interval"] == "95 % interval +0.8 to +1.6"
    assert found["thesis_distance"] / found["random_distance"] == pytest.approx(0.5, abs=0.05)
    accuracies = [
        found[name] for name in ("thesis", "random", "random_refitted", "dense", "wide_thesis", "wide_random")
    ]
    assert [round(accuracy) for accuracy in accuracies] == [18, 20, 66, 86, 37, 34]


def test_what_the_chapter_own_says_of_the_choice_is_on_record(published):
    """ "No choice that was fine-tuned ends more than a tenth of a point above L1", and "obs leaves the most"."""
    records = study.companion_records("study", "beyond")
    after = frames.trials(records).query("ratio == 0.5").groupby("method")["test"].mean()
    plain = after[[name for name in after.index if not name.endswith(COMPENSATED)]]
    assert len(plain) == 7 and plain.max() - plain["L1"] < 0.15
    before = frames.removals_by_network(records).query("ratio == 0.5").groupby("method")["convolution"].mean()
    assert before.idxmax() == "optimal brain surgeon"


def test_the_readme_s_table_is_on_record(published):
    table = tables.steps_table(study.companion_records("study", "beyond"))
    for row in table.itertuples(index=False):
        assert "| " + " | ".join(row) + " |\n" in README


def test_what_the_readme_says_of_full_width_is_on_record(published):
    records = study.companion_records("study", "wide")
    half = frames.removals_by_network(records).query("ratio == 0.5").set_index("method")
    assert half.loc["random", ["none", "convolution"]].astype(float).round().tolist() == [38, 87]
    assert half["convolution"].idxmax() == "optimal brain surgeon"
    found = evidence.beyond_findings(records)
    assert found["dense"] == "93.3 %" and found["networks"] == 1
    lost = [found[f"{name}_lost"] for name in ("functional", "random", "l1")]
    assert lost == ["1.7 points", "2.3 points", "2.5 points"]
    ends = frames.trials(records).pivot_table(index="method", columns="ratio", values="test")
    assert ends.shape == (11, 2) and (ends.max() - ends.min() < 1).all()
    mended = ends[ends.index.str.endswith(COMPENSATED)]
    gained = mended.rename(lambda name: name.removesuffix(COMPENSATED)) - ends
    assert (gained.min().min().round(1), gained.max().max().round(1)) == (-0.1, 0.5)


def test_what_the_readme_says_of_gentler_fine_tuning_is_on_record(published):
    found = evidence.gentle_findings(study.companion_records("study", "gentle"), study.profile("beyond-gentle"))
    ends = {name.removesuffix("_small"): end for name, end in found.items() if name.count("_") == 2 and "small" in name}
    assert found["networks"] == 1 and ends == {
        "plain_usual": "91.2 %",
        "plain_gentle": "92.7 %",
        "refitted_usual": "91.6 %",
        "refitted_gentle": "92.4 %",
        "random_usual": "91.5 %",
        "random_gentle": "92.3 %",
    }
    assert found["recovered_small"] == "3 of 3"
    gained = [
        float(ends[f"{arm}_gentle"][:-2]) - float(ends[f"{arm}_usual"][:-2]) for arm in ("plain", "refitted", "random")
    ]
    assert (round(min(gained), 1), round(max(gained), 1)) == (0.8, 1.5)
    explored = evidence.explored_findings(
        study.companion_records("study", "explored"), study.profile("beyond-explored")
    )
    assert explored["better_2"] == "-1.5 points (95 % interval -2.9 to -0.2)"  # on networks of a quarter of the width
    narrow = evidence.gentle_narrow_findings(
        study.companion_records("study", "gentle_narrow"), study.profile("beyond-gentle-quarter")
    )
    assert narrow["better_plain"] == "-0.8 points (95 % interval -1.5 to -0.05)"
    assert narrow["better_refitted"] == "-0.8 points (95 % interval -1.9 to +0.4)"
    answers = [narrow[f"answer_{name}"] for name in ("better_plain", "better_refitted", "kept_usual", "kept_gentle")]
    assert answers == ["no", "open", "open", "open"] and narrow["networks"] == 3


def test_what_the_readme_says_of_muon_is_on_record(published):
    sgd, muon = (study.companion_records("study", which) for which in ("beyond", "muon"))
    found = evidence.optimizer_findings(sgd, muon)
    assert (found["sgd_networks"], found["muon_networks"]) == (10, 4)
    assert found["muon_removed"] == "-7.4 points (95 % interval -9.3 to -5.5)" and found["answer_removed"] == "yes"
    assert found["muon_tuned"] == "-2.5 points (95 % interval -4.0 to -0.9)" and found["answer_tuned"] == "yes"
    assert found["sgd_removed"] == "+3.9 points (95 % interval +0.7 to +7.0)"
    gaps = evidence.gaps_by_optimizer([sgd, muon]).query("measured == 'as removed'").set_index(["method", "optimizer"])
    assert (gaps.loc[evidence.FUNCTIONAL, "low"] > 0).all()  # chapter 16: the cover stays above random removal


def test_what_the_readme_says_of_mass_alone_is_on_record(published):
    found = evidence.mass_findings(study.companion_records("study", "mass"))
    left = [found[f"{name}_removed"] for name in ("random", "mass", "cover")]
    assert left == ["19.7 %", "29.2 %", "32.3 %"] and found["networks"] == 3
    chance, mass, cover = (float(accuracy[:-2]) for accuracy in left)
    assert (mass - chance) / (cover - chance) == pytest.approx(0.75, abs=0.01)
    assert found["cover_gain_removed"] == "+3.1 points (95 % interval +1.1 to +5.1)"
    assert found["cover_gain_refitted"] == "+1.2 points (95 % interval -1.2 to +3.6)"
    assert [found[f"answer_{step}"] for step in ("removed", "refitted")] == ["yes", "open"]
    assert (found["mass_gain_removed"][:4], found["mass_gain_refitted"][:4]) == ("+9.5", "+3.9")


def test_what_the_readme_says_of_removal_without_training_is_on_record(published):
    explored, plan = study.companion_records("study", "explored"), study.profile("beyond-explored")
    found = evidence.explored_findings(explored, plan)
    assert (found["refitted_small"], found["flops_small"]) == ("0.9 points", "83 %")
    lost = frames.removals_by_network(explored).assign(lost=lambda row: row["dense test"] - row["convolution"])
    means = lost.groupby(["ratio", "method"])["lost"].agg(["mean", "count"])
    assert set(means["count"]) == {6}
    assert means["mean"].unstack()[["functional cover", "L1"]].round(1).to_numpy().tolist() == [[0.9, 0.9], [2.4, 2.5]]
    every = frames.removals_by_network(study.companion_records("study", "beyond")).query("ratio == 0.3")
    lost = (every["dense test"] - every["convolution"]).groupby(every["method"]).agg(["mean", "count"])
    assert lost.loc[["functional cover", "L1"], "mean"].between(4.5, 5).all() and set(lost["count"]) == {3}


def test_what_the_chapter_says_of_close_diagrams_is_on_record(published):
    """The sign of the rank correlation depends on the networks."""
    study_ranks = evidence.distance_ranks(published).set_index("ratio")["as removed"]
    assert (study_ranks < 0).sum() == 4 and study_ranks[0.9] > 0
    half = frames.trials(published).query("ratio == 0.5").groupby("method")[["topological distance", "damaged"]].mean()
    norms = half.loc[["L1", "L2", "FPGM"]]
    close = half.loc[["random", "topological"]]
    assert norms["topological distance"].min() > 4 > 1 > close["topological distance"].max()
    assert norms["damaged"].max() < 15 < 30 < close["damaged"].min()
    assert 0 < close.loc["topological", "damaged"] - close.loc["random", "damaged"] < 4
    assert evidence.beyond_findings(study.companion_records("study", "beyond"))["distance_rank_none"].startswith("+")
    for which in ("beyond", "wide"):  # the search has closer diagrams, and leaves a little less
        every = frames.removals_by_network(study.companion_records("study", which)).query("ratio == 0.5")
        means = every.groupby("method")[["topological distance", "none"]].mean()
        assert (means.loc["random"] > means.loc["topological"]).all()


def test_what_our_reading_says_of_the_ablations_is_on_record(published):
    table = evidence.ablations(study.companion_records("study", "ablation")).set_index("variant")["accuracy"]
    said = {"H0 alone": -1.0, "topological, pointed": -1.3, "farthest point": -1.7}
    assert {name: table[name] for name in said} == pytest.approx(said, abs=0.05)
    assert table["greedy"] < 0 and table["random search"] < 0


def test_flops_are_matched_network_by_network(published):
    """On the mean over networks global Taylor at 0.95 was within 1 %, with one network at 98.2 %."""
    off = evidence.flops_mismatches(published).set_index(["rival", "ratio", "seed"])["FLOPs (%)"].round(1)
    assert off.to_dict() == {
        ("global Taylor", 0.9, 0): 102.8,
        ("global Taylor", 0.9, 1): 102.3,
        ("global magnitude", 0.9, 2): 98.9,
        ("global Taylor", 0.95, 1): 98.2,
        ("global magnitude", 0.95, 2): 104.6,
    }
    table = evidence.accuracy_equivalence(published, ("topological", "L1"), evidence.GLOBAL)
    cells = table[(table["rival"] == "global Taylor") & (table["ratio"] == 0.95)]
    assert set(cells["verdict"]) == {"undecided"} and set(cells["seeds"]) == {2}


def test_a_mixed_model_does_not_depend_on_the_number_of_threads(published):
    """With one thread this fit did not converge, and the networks became a factor."""
    from threadpoolctl import threadpool_limits

    frame = frames.trials(published)
    frame = frame.assign(x=statistics.standardized(frame["removed norm"]), y=frame["recovery area"])
    with threadpool_limits(1):
        effect = statistics.mixed_effect("y ~ C(ratio) + C(method) + x", frame, "x")
    assert effect["model"] == "mixed" and effect["effect"] == pytest.approx(9.96, abs=0.005)


def test_one_layer_decides_the_registered_distance(published):
    table = tables.distance_by_layer(published).set_index("convolution")["correlation with the mean"]
    assert table.idxmax() == "features.37" and table.max() > 0.99


def test_records_of_today_have_what_tables_and_figures_read(tiny_study):
    records = tiny_study.records
    assert len(frames.trials(records)) == 4
    assert len(tables.comparison_table(records)) == 2
    layers = frames.layer_frame(records)
    assert set(layers["layer"]) == set(range(1, 14)) and layers.notna().all(axis=None)
    assert (tables.search_table(records)["layers"] == 13).all()
    portrait = records[-1]
    assert tables.shared_choices(portrait).set_index("method").loc["L1", "L1"] == 100
    for draw in (figures.persistence_diagrams, figures.barcodes, figures.filters_in_the_plane):
        assert len(draw(portrait).axes) >= 2
