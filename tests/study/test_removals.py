"""Removals without fine-tuning, clouds, and trials whose networks are compensated."""

import dataclasses

import numpy as np
import pytest
from conftest import TINY

from topoprune import study
from topoprune.study import Clouds, Record, Removal
from topoprune.study.removals import functional_losses

BEYOND = dataclasses.replace(
    TINY,
    seeds=(0,),
    methods=("merge", "random, compensated"),
    removals=("random", "merge", "qr"),
    removal_ratios=(0.5,),
    draws=2,
)


@pytest.fixture(scope="module")
def beyond(tmp_path_factory):
    """The records of a dense network, its clouds, four removals and two trials."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cache", "results"):
            patch.setenv(f"TOPOPRUNE_{name.upper()}", str(tmp_path_factory.mktemp(name)))
        patch.setitem(study.PROFILES, "tiny-beyond", BEYOND)
        yield study.records("tiny-beyond", device="cpu")


def of_kind(records, kind):
    return [record for record in records if isinstance(record.spec, kind)]


def test_every_spec_has_its_record(beyond):
    assert [type(record.spec).__name__ for record in beyond] == ["Dense", "Clouds", *["Removal"] * 4, *["Trial"] * 2]
    assert len({record.key for record in beyond}) == len(beyond)
    assert [Record.from_json(record.to_json()) for record in beyond] == beyond
    assert len({record.result["network"] for record in beyond}) == 1


def test_a_removal_is_measured_plain_and_refitted(beyond):
    removals = of_kind(beyond, Removal)
    assert [study.variant(record.spec) for record in removals] == ["random", "random", "merge", "qr"]
    assert removals[0].result["layers"] != removals[1].result["layers"]  # two draws
    for record in removals:
        assert set(record.result["accuracy"]) == {"none", "channels", "convolution"}
        for left in record.result["accuracy"].values():
            assert 0 <= left["validation"] <= 1 and 0 <= left["test"] <= 1
        for losses in record.result["layers"].values():
            assert set(losses) == {"radius", "cost", "norm", "rank", "weights"}
            assert 0 <= losses["cost"] <= 1 and 0 <= losses["radius"] <= 1


def test_a_cover_loses_less_mass_than_chance_in_every_layer(beyond):
    random, _, merge, _ = (record.result["layers"] for record in of_kind(beyond, Removal))
    assert np.mean([merge[layer]["cost"] < random[layer]["cost"] for layer in random]) > 0.8


def test_clouds_describe_each_layer_in_both_spaces(beyond):
    [record] = of_kind(beyond, Clouds)
    for layer, spaces in record.result["layers"].items():
        for space, described in spaces.items():
            assert described["distances"] == sorted(described["distances"])
            assert 0 < described["radius"] <= described["distances"][-1] * 1.5 + 1e-9
            assert ("merges" in described) == (layer == record.spec.layer)
            if space == "functional":
                assert described["distances"][-1] <= 1
    merges = record.result["layers"][record.spec.layer]["functional"]["merges"]
    assert sum(merges) == pytest.approx(1, abs=0.02)


def test_a_compensated_trial_begins_elsewhere_and_says_so(beyond):
    plain, mended = of_kind(beyond, study.Trial)
    assert plain.spec.compensation == "" and "compensation" not in plain.to_json()["spec"]
    assert mended.to_json()["spec"]["compensation"] == "convolution"
    assert len(mended.result["history"]) == TINY.recovery.epochs


def test_what_a_choice_loses():
    line = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert functional_losses(line, np.array([0, 2])) == {"radius": 0, "cost": 0}
    assert functional_losses(line, np.array([0, 1])) == {"radius": 1, "cost": pytest.approx(1 / 26)}
    assert functional_losses(line, np.array([3])) == {"radius": 1, "cost": 1}
    assert functional_losses(np.zeros((2, 2)), np.array([0])) == {"radius": 0, "cost": 0}


def test_an_unknown_compensation_is_refused(beyond):
    with pytest.raises(ValueError, match="unknown compensation 'full': choose from channels, convolution, or none"):
        dataclasses.replace(beyond[-1].spec, compensation="full")
    with pytest.raises(ValueError, match="unknown method 'luck'"):
        dataclasses.replace(of_kind(beyond, Removal)[0].spec, method="luck")
