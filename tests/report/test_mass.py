"""The sixth question beside the claims: its findings and its table follow what was planted."""

import numpy as np
import pytest
import scipy.stats
from planted import networks
from planted_beyond import removal, trial

from topoprune.report import evidence, tables
from topoprune.study.profiles import FUNCTIONAL_CHOICE

LEFT = {"random": 20.0, "mass": 30.0, FUNCTIONAL_CHOICE: 34.0}
"""Test accuracy (%) as removed, on average over networks; refitted it is 40 points more."""
ENDS = {"random": 80.0, "mass": 82.0, FUNCTIONAL_CHOICE: 81.0}
"""The same after fine-tuning."""
STEPS = dict(zip(LEFT, (0.1, 0.2, 0.4), strict=True))
"""How much each rises from network to network."""


def three_choices(seeds: int) -> list:
    records = networks(seeds)
    for seed in range(seeds):
        for name in LEFT:
            rise = STEPS[name] * (seed - (seeds - 1) / 2)
            for draw, own in enumerate((-1.0, 1.0) if name == "random" else (0.0,)):
                records.append(
                    removal(name, 0.5, seed, LEFT[name] + rise + own, 40.0, 0.2, 0.3, draw=seed + 1000 * draw)
                )
            records.append(trial(name, 0.5, seed, ENDS[name] + rise, 0.3))
    return records


def test_the_cover_is_compared_with_the_mass_alone_in_every_step():
    found = evidence.mass_findings(three_choices(4))
    differences = 4 + 0.2 * (np.arange(4) - 1.5)
    low, high = scipy.stats.t.interval(0.95, 3, loc=differences.mean(), scale=scipy.stats.sem(differences))
    assert found["cover_gain_removed"] == f"+4.0 points (95 % interval {low:+.1f} to {high:+.1f})"
    assert (found["random_removed"], found["mass_refitted"], found["cover_tuned"]) == ("20.0 %", "70.0 %", "81.0 %")
    assert found["mass_gain_removed"].startswith("+10.0 points") and found["networks"] == 4
    answers = [found[f"answer_{step}"] for step in ("removed", "refitted", "tuned")]
    assert answers == ["yes", "yes", "no"]


def test_the_table_has_each_choice_once_with_all_steps():
    table = tables.mass_table(three_choices(4)).set_index("choice")
    assert table.index.tolist() == ["random", "functional cover", "mass alone"]
    assert table["as removed (%)"].str.split().str[0].tolist() == ["20.0", "34.0", "30.0"]
    assert table["refitted (%)"].str.split().str[0].tolist() == ["60.0", "74.0", "70.0"]
    assert table["fine-tuned (%)"].str.split().str[0].tolist() == ["80.0", "81.0", "82.0"]


@pytest.mark.parametrize("records", [[], networks(2), three_choices(2)], ids=["none", "dense", "two"])
def test_what_is_missing_is_said_and_decides_nothing(records):
    found = evidence.mass_findings(records)
    assert found.keys() == evidence.mass_findings(three_choices(3)).keys()
    assert {found[f"answer_{step}"] for step in ("removed", "refitted", "tuned")} == {"open"}
    assert "nan" not in " ".join(map(str, found.values()))
    assert tables.mass_table(records).columns.equals(tables.mass_table(three_choices(3)).columns)
