"""Measures of what a removal did, against values by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topoprune import files
from topoprune.models import build
from topoprune.network import couplings
from topoprune.study import load_data
from topoprune.study.damage import ROUNDING, damage_by_layer, effective_rank, live_share, lost_shares, recovery
from topoprune.study.run_folder import DENSE, run_folder

EXAMPLE = torch.zeros(2, 3, 32, 32)


def test_recovery_by_hand():
    history = [{"validation": v, "seconds": 10.0} for v in (0.5, 0.8, 0.9)]
    assert recovery(history, {"validation": 0.1}, goal=0.8) == {
        "goal": 0.8,
        "reached": True,
        "epochs": 2,
        "seconds": 20.0,
        "area": pytest.approx((0.3 + 0.65 + 0.85) / 3),
    }
    never = recovery(history, {"validation": 0.1}, goal=0.95)
    assert not never["reached"] and never["epochs"] == 3 and never["seconds"] == 30.0
    assert recovery(history, {"validation": 0.96}, goal=0.95)["epochs"] == 0
    assert recovery([], {"validation": 0.5}, goal=0.9)["area"] == 0.5


def test_half_a_point_below_the_dense_network_is_recovered_whatever_the_count_of_images():
    """(k + 25) / 5000 - 0.005 is above k / 5000 for some k."""
    for right in range(4976):
        goal = (right + 25) / 5000 - 0.005
        assert recovery([], {"validation": right / 5000}, goal)["reached"]
        assert not recovery([], {"validation": (right - 1) / 5000}, goal)["reached"]


@given(
    curve=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    goal=st.floats(0, 1),
)
def test_a_network_has_recovered_if_its_curve_reaches_the_goal(curve, goal):
    history = [{"validation": value, "seconds": 1.0} for value in curve[1:]]
    found = recovery(history, {"validation": curve[0]}, goal)
    assert found["reached"] == (max(curve) >= goal - ROUNDING)
    assert found["epochs"] == found["seconds"]
    assert all(value < goal - ROUNDING for value in curve[: found["epochs"]])
    assert min(curve) - 1e-9 <= found["area"] <= max(curve) + 1e-9


def test_a_collapsed_layer_is_seen():
    torch.manual_seed(0)
    model = build("vgg16", width=1 / 16)
    model.features[4].weight.data.zero_()
    model.features[4].bias.data.fill_(1.0)
    shares = live_share(model, load_data("digits"))
    assert shares[0] > 0 and shares[1:] == [0.0] * 12  # what follows sees a constant


def test_simple_measures_of_a_removal_by_hand(tiny_study):
    record = tiny_study.records[2]
    checkpoint = run_folder(record.spec.dense, tiny_study.cache) / DENSE
    weights, _ = files.read_tensors(checkpoint)
    for layer, shares in record.result["damage"]["plain"].items():
        rows = weights[f"model.{layer}.weight"].flatten(1).double()
        chosen = rows[record.result["kept"][layer]]
        assert shares["norm"] == pytest.approx(1 - float((chosen**2).sum() / (rows**2).sum()), abs=1e-5)
        ranks = []
        for part in (chosen, rows):
            p = torch.linalg.svdvals(part) / torch.linalg.svdvals(part).sum()
            ranks.append(torch.exp(-(p * p.log()).sum()))
        assert shares["rank"] == pytest.approx(float(1 - ranks[0] / ranks[1]), abs=1e-5)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_effective_rank_lies_between_1_and_the_rank(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank = effective_rank(matrix)
    assert 1 - 1e-9 <= rank <= min(rows, columns) + 1e-9
    assert effective_rank(3 * matrix) == pytest.approx(rank)


def test_a_layer_whose_kept_filters_are_zero_has_lost_everything():
    """0/0 would be NaN, which no record holds: a whole training would be lost."""
    torch.manual_seed(0)
    model = build("vgg16", width=1 / 16).eval()
    model.features[0].weight.data[:2] = 0
    model.features[3].weight.data.zero_()
    kept = {group.layers[0]: list(range(group.choices // 2)) for group in couplings(model, EXAMPLE)}
    damage = damage_by_layer(model, EXAMPLE, kept)
    assert damage["plain"]["features.0"] == {"norm": 1.0, "rank": 1.0}
    assert damage["plain"]["features.3"] == {"norm": 0.0, "rank": 0.0}  # nothing was there
    assert 0 < damage["plain"]["features.7"]["norm"] < 1
    files.canonical(damage)  # refuses NaN


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(2, 8), kept=st.integers(1, 8), seed=st.integers(0, 99), zeros=st.integers(0, 8))
def test_lost_shares_are_shares(rows, kept, seed, zeros):
    filters = np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32)
    filters[:zeros] = 0
    lost = lost_shares(filters, np.arange(min(kept, rows)))
    assert 0 <= lost["norm"] <= 1 + 1e-6 and lost["rank"] <= 1
    assert lost_shares(filters, np.arange(rows)) == pytest.approx({"norm": 0, "rank": 0})
