"""Removals without fine-tuning, clouds, and trials whose networks are compensated."""

import dataclasses

import numpy as np
import pytest
from tiny import TINY

from topoprune import study
from topoprune.study import Clouds, Record, Removal
from topoprune.study.removals import functional_losses


def of_kind(records, kind):
    return [record for record in records if isinstance(record.spec, kind)]


def test_every_spec_has_its_record(tiny_beyond):
    assert [type(record.spec).__name__ for record in tiny_beyond] == [
        "Dense",
        "Clouds",
        *["Removal"] * 4,
        *["Trial"] * 2,
    ]
    assert len({record.key for record in tiny_beyond}) == len(tiny_beyond)
    assert [Record.from_json(record.to_json()) for record in tiny_beyond] == tiny_beyond
    assert len({record.result["network"] for record in tiny_beyond}) == 1


def test_a_removal_is_measured_plain_and_refitted(tiny_beyond):
    removals = of_kind(tiny_beyond, Removal)
    assert [study.variant(record.spec) for record in removals] == ["random", "random", "cover", "qr"]
    assert removals[0].result["layers"] != removals[1].result["layers"]  # two draws
    for record in removals:
        assert set(record.result["accuracy"]) == {"none", "channels", "convolution"}
        for left in record.result["accuracy"].values():
            assert 0 <= left["validation"] <= 1 and 0 <= left["test"] <= 1
        for losses in record.result["layers"].values():
            assert set(losses) == {"radius", "cost", "norm", "rank", "weights"}
            assert 0 <= losses["cost"] <= 1 and 0 <= losses["radius"] <= 1


def test_a_cover_loses_less_mass_than_chance_in_every_layer(tiny_beyond):
    random, _, cover, _ = (record.result["layers"] for record in of_kind(tiny_beyond, Removal))
    assert np.mean([cover[layer]["cost"] < random[layer]["cost"] for layer in random]) > 0.8


def test_clouds_describe_each_layer_in_both_spaces(tiny_beyond):
    [record] = of_kind(tiny_beyond, Clouds)
    for layer, spaces in record.result["layers"].items():
        for space, described in spaces.items():
            assert described["distances"] == sorted(described["distances"])
            assert 0 < described["radius"] <= described["distances"][-1] * 1.5 + 1e-9
            assert ("merges" in described) == (layer == record.spec.layer)
            if space == "functional":
                assert described["distances"][-1] <= 1
    merges = record.result["layers"][record.spec.layer]["functional"]["merges"]
    assert sum(merges) == pytest.approx(1, abs=0.02)


def test_a_compensated_trial_begins_elsewhere_and_says_so(tiny_beyond):
    plain, mended = of_kind(tiny_beyond, study.Trial)
    assert plain.spec.compensation == "" and "compensation" not in plain.to_json()["spec"]
    assert mended.to_json()["spec"]["compensation"] == "convolution"
    assert len(mended.result["history"]) == TINY.recovery.epochs


def test_what_a_choice_loses():
    line = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert functional_losses(line, np.array([0, 2])) == {"radius": 0, "cost": 0}
    assert functional_losses(line, np.array([0, 1])) == {"radius": 1, "cost": pytest.approx(1 / 26)}
    assert functional_losses(line, np.array([3])) == {"radius": 1, "cost": 1}
    assert functional_losses(np.zeros((2, 2)), np.array([0])) == {"radius": 0, "cost": 0}


def test_an_unknown_compensation_is_refused(tiny_beyond):
    with pytest.raises(ValueError, match="unknown compensation 'full': choose from channels, convolution, or none"):
        dataclasses.replace(tiny_beyond[-1].spec, compensation="full")
    with pytest.raises(ValueError, match="unknown method 'luck'"):
        dataclasses.replace(of_kind(tiny_beyond, Removal)[0].spec, method="luck")
