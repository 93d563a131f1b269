"""A module in, a result out: targets, steps, what is ignored, own criteria, files and exports."""

import math

import numpy as np
import pytest
import torch
from foreign import IMAGES, Residual, Siamese, centred
from torch import nn

import topoprune
from topoprune import budget
from topoprune.models import build


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return build("vgg16", width=1 / 8).eval()


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return centred(Residual()).eval()


SMALL = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_result_says_what_was_done(residual):
    result = topoprune.prune(residual, IMAGES, "l1", 0.5)
    assert result.kept == topoprune.select(residual, IMAGES, "l1", 0.5)
    assert result.filters["one.0"] == 10 and result.model.one[0].out_channels == 5
    assert result.after.parameters == sum(p.numel() for p in result.model.parameters())
    text = str(result)
    assert f"{result.before.parameters:,}" in text and "one.0" in text and "10 -> 5" in text


@pytest.mark.parametrize("what", ["flops", "parameters"])
@pytest.mark.parametrize("share", [0.7, 0.05])
@pytest.mark.parametrize("method", ["random", "magnitude"])
def test_a_target_is_reached_within_a_hundredth(vgg, what, share, method):
    result = topoprune.prune(vgg, SMALL, method, **{what: share})
    before, after = getattr(result.before, what), getattr(result.after, what)
    assert after == pytest.approx(share * before, rel=0.01)
    absolute = topoprune.prune(vgg, SMALL, method, **{what: int(share * before)})
    assert getattr(absolute.after, what) == pytest.approx(share * before, rel=0.01)


def test_a_target_respects_multiples_and_the_minimum(vgg):
    kept = topoprune.select(vgg, SMALL, "l1", round_to=4, minimum=8, flops=0.4)
    assert all(len(filters) % 4 == 0 and len(filters) >= 8 for filters in kept.values())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flops": 0.5, "parameters": 0.5}, "one target at a time, got flops and parameters"),
        ({"flops": 0}, "flops must be above 0, got 0: it is what should remain"),
        ({"flops": 1e-9}, "flops cannot fall to"),
        ({"ratio": {"layer9.*": 0.5}}, r"ratio names 'layer9.\*', which no layer matches"),
        ({"ignore": ["layer9"]}, "ignore names 'layer9', which is not in Residual"),
        ({"layers": ("typo",)}, "unknown layer 'typo'"),
        ({"minimum": 0}, "minimum must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"method": "l1", "labels": 3}, "unknown option labels of method 'l1': it takes engine"),
    ],
)
def test_a_mistake_is_named_with_its_cure(residual, options, message):
    with pytest.raises(ValueError, match=message):
        topoprune.prune(residual, IMAGES, **{"method": "random", **options})


def test_a_latency_is_measured_on_the_way(vgg):
    whole = topoprune.cost(vgg, SMALL, seconds=0.01).latency_ms
    result = topoprune.prune(vgg, SMALL, "random", latency_ms=3 * whole)
    assert all(len(filters) >= 1 for filters in result.kept.values())
    with pytest.raises(ValueError, match="latency_ms cannot fall to 1e-06"):
        topoprune.prune(vgg, SMALL, "random", latency_ms=1e-6)
    with pytest.raises(ValueError, match="latency_ms cannot fall to 1e-06"):  # never a share
        topoprune.select(vgg, SMALL, "magnitude", latency_ms=1e-6)


def test_ratios_by_layer_and_what_is_ignored(residual):
    kept = topoprune.select(residual, IMAGES, "l1", {"one.*": 0.5, "enter.*": 0.25})
    assert {layer: len(f) for layer, f in kept.items()} == {
        "enter.0": 12,  # coupled to two.0, which no pattern names
        "one.0": 5,
        "two.0": 12,
        "short.0": 16,
        "wide.0": 16,
    }
    for ignore in (["one"], ["one.*"], [residual.one], [residual.one[0]]):
        result = topoprune.run_selection(residual, IMAGES, "l1", 0.5, ignore=ignore)
        assert result.left_whole == {"one.0": "it is ignored"}
        assert len(result.kept["one.0"]) == 10 and len(result.kept["two.0"]) == 6
    with pytest.raises(ValueError, match="every layer is left whole or ignored"):
        topoprune.select(residual, IMAGES, "l1", 0.5, ignore=[nn.Conv2d])


def test_steps_reach_what_one_step_reaches_and_tune_in_between(residual):
    once = topoprune.prune(residual, IMAGES, "l1", 0.6)
    seen = []

    def between(model, step):
        seen.append((step, model.one[0].out_channels))

    thrice = topoprune.prune(residual, IMAGES, "l1", 0.6, steps=3, between=between)
    assert seen == [(1, 8), (2, 6)]
    assert {k: len(v) for k, v in thrice.kept.items()} == {k: len(v) for k, v in once.kept.items()}
    again = topoprune.remove(residual, IMAGES, thrice.kept)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), thrice.model.parameters(), strict=True))


def test_steps_towards_a_target(vgg):
    result = topoprune.prune(vgg, SMALL, "l2", flops=0.3, steps=3, schedule=lambda done: done**2)
    assert result.after.flops == pytest.approx(0.3 * result.before.flops, rel=0.01)


def test_a_dry_run_makes_no_network(residual):
    dry = topoprune.prune(residual, IMAGES, "l1", 0.5, dry_run=True)
    assert dry.model is None and dry.kept == topoprune.select(residual, IMAGES, "l1", 0.5)
    assert dry.after.flops < dry.before.flops


def test_own_criteria_as_scores_or_as_indices(residual):
    by_scores = topoprune.select(residual, IMAGES, lambda points: np.abs(points).sum(1), 0.5)
    assert by_scores == topoprune.select(residual, IMAGES, "l1", 0.5)

    def by_indices(points, keep):
        return np.argsort(-np.abs(points).sum(1))[:keep]

    assert topoprune.select(residual, IMAGES, by_indices, 0.5) == by_scores
    with pytest.raises(ValueError, match=r"the criterion must give 12 finite scores for enter.0, got \[1.\]"):
        topoprune.select(residual, IMAGES, lambda points: np.ones(1), 0.5)
    with pytest.raises(ValueError, match="the criterion must give 6 different indices below 12 for enter.0"):
        topoprune.select(residual, IMAGES, lambda points, keep: np.zeros(keep, int), 0.5)


def test_a_target_by_scores_skips_what_overshoots():
    """Two couplings: one whose filters cost 10 each, one whose cost 1; the goal lies between."""
    costs = 10, 1
    scores = [torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.3, 0.4, 0.5, 0.9])]

    def measure(kept):
        return sum(cost * len(stays) for cost, stays in zip(costs, kept, strict=True))

    for goal in range(12, 35):
        chosen = budget.by_scores(scores, [1, 1], measure, goal)
        reachable = [10 * a + b for a in (1, 2, 3) for b in (1, 2, 3, 4)]
        best = min(abs(value - goal) for value in reachable)
        assert abs(measure(chosen) - goal) <= best + 1 and 2 in chosen[0] and 3 in chosen[1]


def test_a_choice_is_stored_and_applied_to_another_copy(residual, tmp_path):
    result = topoprune.prune(residual, IMAGES, "l1", 0.5)
    file = tmp_path / "small.safetensors"
    topoprune.save(result.model, file, kept=result.kept, example_inputs=IMAGES)
    fresh = Residual()
    loaded = topoprune.load(file, model=fresh).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), result.model(IMAGES))
    assert fresh.one[0].out_channels == 10
    with pytest.raises(ValueError, match="does not say which network it holds: pass it, as load"):
        topoprune.load(file)
    with pytest.raises(ValueError, match="unknown layer|holds another network"):
        topoprune.load(file, model=nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)))
    with pytest.raises(ValueError, match="save needs example_inputs beside kept"):
        topoprune.save(result.model, file, kept=result.kept)


def test_networks_of_two_inputs_are_stored_too(tmp_path):
    torch.manual_seed(0)
    model, inputs = Siamese().eval(), {"left": IMAGES, "right": IMAGES.flip(0)}
    result = topoprune.prune(model, inputs, "l1", 0.5)
    topoprune.save(result.model, tmp_path / "small.safetensors", kept=result.kept, example_inputs=inputs)
    loaded = topoprune.load(tmp_path / "small.safetensors", model=Siamese()).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**inputs), result.model(**inputs))


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
@pytest.mark.slow
def test_exports_answer_as_the_network_does(residual, tmp_path):
    import onnxruntime

    small = topoprune.prune(residual, IMAGES, "fpgm", 0.5).model
    with torch.no_grad():
        expected = small(IMAGES)
        torch.testing.assert_close(torch.export.export(small, (IMAGES,)).module()(IMAGES), expected)
    torch.onnx.export(small, (IMAGES,), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), expected, rtol=1e-4, atol=1e-5)


def test_the_last_tenth_of_a_ratio_is_not_lost(vgg):
    for ratio in (0.1, 0.29, 0.57, 0.999):
        kept = topoprune.select(vgg, SMALL, "random", ratio)
        for layer, filters in kept.items():
            n = vgg.get_submodule(layer).out_channels
            assert len(filters) == n - math.floor(n * ratio)
