"""The fourth question beside the claims: the answer follows the planted difference of L1 from random removal."""

import dataclasses

import pytest
from planted import networks
from planted_beyond import removal, trial

from topoprune.report import evidence, figures, tables
from topoprune.report.evidence.optimizers import AS_REMOVED, FINE_TUNED
from topoprune.study import Dense
from topoprune.study.profiles import COMPENSATED


def sgd(seeds: int, removed: float = 4.0, tuned: float = 1.0) -> list:
    """Networks on which L1 keeps `removed` points more than random removal, and ends `tuned` points above it."""
    records = networks(seeds)
    for seed in range(seeds):
        wiggle = 0.1 * seed
        records += [
            *(removal("random", 0.5, seed, 20 + wiggle + draw, 40, 0.3, 5.0, draw) for draw in (-1, 1)),
            removal("l1", 0.5, seed, 20 + removed + 2 * wiggle, 40, 0.3, 4.0),
            removal("l1", 0.3, seed, 99, 0, 0.3, 4.0),
            trial("random", 0.5, seed, 80 + wiggle, 0.3),
            trial("l1", 0.5, seed, 80 + tuned + 2 * wiggle, 0.3),
            trial("random" + COMPENSATED, 0.5, seed, 50, 0.3),
        ]
    return records


def muon(seeds: int, removed: float = -9.0, tuned: float = -1.0) -> list:
    """The same after Muon."""
    return [dataclasses.replace(record, spec=after_muon(record.spec)) for record in sgd(seeds, removed, tuned)]


def after_muon(spec):
    """The spec of a dense network that Muon trained, or of a run that pruned it."""
    if isinstance(spec, Dense):
        return dataclasses.replace(spec, recipe=dataclasses.replace(spec.recipe, muon_rate=0.1))
    return dataclasses.replace(spec, dense=after_muon(spec.dense))


def test_gaps_are_paired_within_networks_and_never_mix_groups():
    gaps = evidence.gaps_by_optimizer([sgd(3), muon(4)]).set_index(["optimizer", "measured", "method"])
    assert gaps.loc[("SGD", AS_REMOVED, "L1"), "difference"] == pytest.approx(4.1)
    assert gaps.loc[("Muon", AS_REMOVED, "L1"), "difference"] == pytest.approx(-8.85)
    assert gaps.loc[("Muon", FINE_TUNED, "L1"), "difference"] == pytest.approx(-0.85)
    assert gaps.loc[("SGD", AS_REMOVED, "random"), "accuracy"] == pytest.approx(20.1)  # the mean of its draws
    assert gaps.xs("SGD")["seeds"].eq(3).all() and gaps.xs("Muon")["seeds"].eq(4).all()
    assert not gaps.index.get_level_values("method").str.endswith(COMPENSATED).any()
    assert gaps.loc[("SGD", AS_REMOVED, "L1"), "removed norm"] == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("seeds", "removed", "answer"), [(4, -9.0, "yes"), (4, 9.0, "no"), (4, -0.1, "open"), (2, -9.0, "open")]
)
def test_the_answer_is_that_of_the_interval_and_needs_three_networks(seeds, removed, answer):
    found = evidence.optimizer_findings(sgd(4), muon(seeds, removed=removed, tuned=1.0))
    assert found["answer_removed"] == answer
    assert found["answer_tuned"] == ("no" if seeds > 2 else "open")
    assert (found["sgd_networks"], found["muon_networks"]) == (4, seeds)


def test_findings_quote_both_arms():
    found = evidence.optimizer_findings(sgd(4), muon(4))
    assert found["sgd_removed"] == "+4.1 points (95 % interval +3.9 to +4.4)" and found["muon_dense"] == "90.0 %"
    assert (
        found["muon_l1_left"] == "11.3 %" and found["muon_random_left"] == "20.1 %" and found["muon_norm"] == "40.0 %"
    )
    assert found["muon_l1_mass"] == "30.0 %" and found["muon_cover"] == "(not on record)"


def test_figure_and_table_show_the_choices_that_all_groups_share():
    groups = [[*sgd(3), removal("l2", 0.5, 0, 30, 40, 0.3, 4.0)], [], muon(1)]
    figure, table = figures.gaps_over_random(groups), tables.gaps_table(groups)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["L1"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["SGD, width 1: 3 networks", "Muon, width 1: one network"]
    row = table.set_index(["dense network", "measured", "choice"])["less random removal"]
    assert row[("SGD, width 1", AS_REMOVED, "L1")] == "+4.1 ± 0.2"
    assert row[("Muon, width 1", AS_REMOVED, "L1")] == "-9.0"
    assert row[("Muon, width 1", AS_REMOVED, "random")] == ""


@pytest.mark.parametrize("records", [[], networks(2)], ids=["none", "dense"])
def test_what_is_missing_is_said(records):
    found = evidence.optimizer_findings(records, records)
    assert found.keys() == evidence.optimizer_findings(sgd(3), muon(3)).keys()
    assert found["muon_removed"] == "(not on record)" and found["answer_removed"] == "open"
    assert "nan" not in " ".join(map(str, found.values()))
    assert tables.gaps_table([records]).empty and figures.gaps_over_random([records]).data.empty
