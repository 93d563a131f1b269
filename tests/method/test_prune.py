"""A module in, a result out: targets, steps, what is ignored, own criteria, files and exports."""

import copy
import math
import warnings
from collections import OrderedDict

import jaxtyping
import numpy as np
import pytest
import torch
from foreign import IMAGES, Concatenated, Residual, Siamese, centred
from torch import nn

import topoprune
from topoprune import budget
from topoprune.files import FileWarning
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


@pytest.mark.parametrize("what", ["flops", "parameters"])
def test_a_target_may_be_a_number(residual, what):
    share = topoprune.prune(residual, IMAGES, "l1", **{what: 0.5})
    number = topoprune.prune(residual, IMAGES, "l1", **{what: int(0.5 * getattr(share.before, what))})
    assert number.kept == share.kept


@pytest.mark.parametrize("method", ["l1", "magnitude"])
@pytest.mark.parametrize("amount", [{"flops": 0.4}, {"ratio": 0.5}])
def test_multiples_and_the_minimum_are_respected(vgg, method, amount):
    kept = topoprune.select(vgg, SMALL, method, round_to=4, minimum=8, **amount)
    assert all(len(filters) % 4 == 0 and len(filters) >= 8 for filters in kept.values())


@pytest.mark.parametrize("method", ["l1", "magnitude"])
@pytest.mark.parametrize("amount", [{}, {"flops": 0.8}])
def test_layers_that_no_pattern_matches_stay_whole(vgg, method, amount):
    kept = topoprune.select(vgg, SMALL, method, {"features.3*": 0.5}, **amount)
    whole = {layer: len(filters) == vgg.get_submodule(layer).out_channels for layer, filters in kept.items()}
    assert all(whole[layer] for layer in whole if not layer.startswith("features.3"))
    assert not all(whole.values())
    if amount:
        spent, before = topoprune.flops(topoprune.remove(vgg, SMALL, kept), SMALL), topoprune.flops(vgg, SMALL)
        assert spent == pytest.approx(0.8 * before, rel=0.01)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flops": 0.5, "parameters": 0.5}, "one target at a time, got flops and parameters"),
        ({"flops": 0.5, "ratio": 0.3}, "flops=0.5 takes the place of ratio=0.3: give one of them"),
        ({"flops": 0}, "flops must be above 0, got 0: it is what should remain"),
        ({"flops": 1e-9}, "flops cannot fall to"),  # a share whose number is below 1 is no share of that number
        ({"parameters": 1e-9, "steps": 2}, "parameters cannot fall to"),
        ({"flops": math.inf}, "flops must be above 0, got inf"),
        ({"flops": math.nan}, "flops must be above 0, got nan"),
        ({"ratio": math.nan}, r"ratio must lie in \[0, 1\), got nan"),
        ({"ratio": {"layer9.*": 0.5}, "steps": 2}, r"ratio names 'layer9.\*', which no layer matches"),
        ({"schedule": lambda done: done / 2, "steps": 2}, "schedule must rise .* to 1 at 1, got 0.25, 0.5"),
        ({"schedule": lambda done: 3 * done, "steps": 2}, "schedule must rise .* to 1 at 1, got 1.5, 3.0"),
        ({"schedule": lambda done: {0.5: 2, 1: 1}[done], "steps": 2}, "schedule must rise .* to 1 at 1, got 2, 1"),
        ({"method": "l1", "engine": "NNI"}, "engine of 'l1' must be 'nni', or left out, got 'NNI'"),
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
    with pytest.warns(topoprune.PruningWarning, match="enter.0 because it is coupled"):
        kept = topoprune.select(residual, IMAGES, "l1", {"one.*": 0.5, "enter.*": 0.25})
    assert {layer: len(f) for layer, f in kept.items()} == {
        "enter.0": 12,  # coupled to two.0, which no pattern names
        "one.0": 5,
        "two.0": 12,
        "short.0": 16,
        "wide.0": 16,
    }
    for ignore in (["one"], ["one.*"], ["on?"], [residual.one], [residual.one[0]]):
        result = topoprune.run_selection(residual, IMAGES, "l1", 0.5, ignore=ignore)
        assert result.left_whole == {"one.0": "it is ignored"}
        assert len(result.kept["one.0"]) == 10 and len(result.kept["two.0"]) == 6
    for ignore in (nn.Conv2d, nn.Sequential):  # with the layers in it
        with pytest.raises(ValueError, match="every layer is left whole or ignored"):
            topoprune.select(residual, IMAGES, "l1", 0.5, ignore=[ignore])


def test_a_layer_coupled_to_one_that_is_ignored_says_so(residual):
    result = topoprune.run_selection(residual, IMAGES, "l1", 0.5, ignore="two")
    reasons = {"enter.0": "it is coupled to a layer that is ignored", "two.0": "it is ignored"}
    assert result.left_whole == reasons
    parts = Concatenated()  # half of c is coupled to a, the other half to b
    result = topoprune.run_selection(parts, IMAGES, "l1", 0.5, ignore="a")
    assert result.left_whole == {"a": "it is ignored"} and len(result.kept["c"]) == 4 + 6


@pytest.mark.parametrize("steps", [1, 2])
def test_ignore_holds_in_every_step(residual, steps):
    for ignore in ((name for name in ["one.0"]), [residual.one[0]], residual.one, {"one.*"}):
        result = topoprune.prune(residual, IMAGES, "l1", 0.5, steps=steps, ignore=ignore)
        assert result.left_whole == {"one.0": "it is ignored"}
        assert len(result.kept["one.0"]) == 10 and len(result.kept["two.0"]) == 6


@pytest.mark.parametrize("steps", [1, 2])
def test_names_count_before_patterns(steps):
    """ "conv[0]" is a layer here, and a pattern that matches another."""
    names = {"conv[0]": nn.Conv2d(3, 8, 3), "conv0": nn.Conv2d(8, 8, 3), "last": nn.Conv2d(8, 2, 3)}
    model = nn.Sequential(OrderedDict(names))
    result = topoprune.prune(model, IMAGES, "l1", {"*": 0.25, "conv[0]": 0.5}, steps=steps)
    assert [len(filters) for filters in result.kept.values()] == [4, 6, 2]
    result = topoprune.prune(model, IMAGES, "l1", 0.5, steps=steps, ignore="conv[0]")
    assert [len(filters) for filters in result.kept.values()] == [8, 4, 2]


OTHER_TYPES = {
    "ratio='0.5'": "ratio must be a number or {pattern: number}, got '0.5'",
    "ratio={'0': 'abc'}": "ratio must be a number or {pattern: number}, got {'0': 'abc'}",
    "ratio={0: 0.5}": "ratio must be a number or {pattern: number}, got {0: 0.5}",
    "ratio=np.float32(0.5), round_to=np.int64(2)": "4",
    "ratio={'0': np.float32(0.5)}, steps=2": "4",
    "flops=np.float32(0.5)": "4",
    "parameters='0.5'": "parameters must be above 0, got '0.5': it is what should remain",
    "types=3": "types must be types of layers, as (nn.Conv2d, nn.Linear), got (3,)",
    "types='Conv2d'": "types must be types of layers, as (nn.Conv2d, nn.Linear), got ('Conv2d',)",
    "round_to=2.5": "round_to must be an integer, got 2.5",
    "minimum='2'": "minimum must be an integer, got '2'",
    "steps=1.5": "steps must be an integer, got 1.5",
    "method='topological', population='abc'": "population must be an integer, got 'abc'",
    "method='topological', population=None": "population must be an integer, got None",
    "method='topological', generations=2.5": "generations must be an integer, got 2.5",
    "method='topological', elites='3'": "elites must be an integer, got '3'",
    "method='topological', mutation='abc'": "mutation must be a number, got 'abc'",
    "method='topological', dimensions=0.5": "dimensions must be (0,), (1,) or (0, 1), got 0.5",
}
"""Arguments that the signatures rule out -> what `prune` answers, or how many of eight filters it keeps."""


@pytest.mark.parametrize("arguments", OTHER_TYPES)
def test_values_of_other_types_are_taken_or_refused_in_one_line(arguments, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    arguments, expected = {"method": "l1", **eval(f"dict({arguments})")}, OTHER_TYPES[arguments]
    try:
        answer = str(len(topoprune.prune(model, SMALL, **arguments).kept["0"]))
    except ValueError as error:
        answer = str(error)
    assert answer == expected


def test_single_names_types_and_dimensions_will_do(residual):
    expected = topoprune.select(residual, IMAGES, "l1", 0.5)
    assert topoprune.select(residual, IMAGES, "l1", 0.5, types=nn.Conv2d) == expected
    assert topoprune.select(residual, IMAGES, "l1", 0.5, layers="one.0") == {"one.0": expected["one.0"]}
    options = {"population": 4, "generations": 1}
    one, same = (topoprune.select(residual, IMAGES, dimensions=dimensions, **options) for dimensions in (0, (0,)))
    assert one == same


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


def test_steps_of_a_network_criterion_reach_the_flops_of_one_step(vgg):
    ratio = {"features.1*": 0.6}
    once, often = (topoprune.prune(vgg, SMALL, "magnitude", ratio, steps=steps) for steps in (1, 3))
    assert often.after.flops == pytest.approx(once.after.flops, rel=0.01)
    early = [name for name in once.kept if not name.startswith("features.1")]
    assert early and all(len(result.kept[name]) == result.filters[name] for result in (once, often) for name in early)


def test_what_between_answers_is_a_network_of_the_same_layers_or_no_matter(residual):
    expected = topoprune.prune(residual, IMAGES, "l1", 0.5, steps=2).kept
    answers = {"epochs": lambda model: [1, 2], "none": lambda model: None, "a copy": copy.deepcopy}
    for answer in answers.values():
        result = topoprune.prune(residual, IMAGES, "l1", 0.5, steps=2, between=lambda model, _, f=answer: f(model))
        assert result.kept == expected
    for other in (nn.DataParallel, lambda model: residual):
        with pytest.raises(ValueError, match="between must keep layers, names and filters, got (DataP|Residual)"):
            topoprune.prune(residual, IMAGES, "l1", 0.5, steps=2, between=lambda model, _, f=other: f(model))


def test_searches_in_steps_are_continued(residual, tmp_path):
    options = {"checkpoints": tmp_path, "population": 6, "generations": 2, "steps": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FileWarning)
        first, again = (topoprune.prune(residual, IMAGES, ratio=0.5, **options) for _ in range(2))
    assert first.searches == again.searches  # with their seconds
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-1", "step-2"]


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
    with pytest.raises(ValueError, match=r"must give 12 finite scores for enter.0, got float64 of shape \(1,\)"):
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
        chosen = budget.by_scores(scores, [1, 1], [1, 1], measure, goal)
        reachable = [10 * a + b for a in (1, 2, 3) for b in (1, 2, 3, 4)]
        best = min(abs(value - goal) for value in reachable)
        assert abs(measure(chosen) - goal) <= best + 1 and 2 in chosen[0] and 3 in chosen[1]


def test_scores_compete_in_multiples():
    """Seven choices in steps of three: six or three stay, the best ones; of four in steps of two, four or two."""
    scores = [torch.tensor([0.3, 0.9, 0.1, 0.8, 0.2, 0.7, 0.6]), torch.full((4,), 0.5)]
    for goal in range(5, 12):
        chosen = budget.by_scores(scores, [3, 2], [3, 2], lambda kept: sum(map(len, kept)), goal)
        counts = [len(stays) for stays in chosen]
        assert counts[0] in (3, 6, 7) and counts[1] in (2, 4) and abs(sum(counts) - goal) <= 1
        assert chosen[0] == sorted(scores[0].argsort(descending=True)[: counts[0]].tolist())


def test_a_loaded_network_is_another_one_and_evaluates(residual, tmp_path):
    result = topoprune.prune(residual, IMAGES, "l1", 0.5)
    pruned, dense = tmp_path / "pruned.safetensors", tmp_path / "dense.safetensors"
    topoprune.save(result.model, pruned, kept=result.kept, example_inputs=IMAGES)
    topoprune.save(residual, dense)
    for file in (pruned, dense):
        model = Residual().train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        loaded = topoprune.load(file, model=model)
        assert loaded is not model and not any(module.training for module in loaded.modules())
        assert all(module.training for module in model.modules())
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    half = topoprune.load(dense, model=Residual().bfloat16())
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_choice_is_stored_and_applied_to_another_copy(residual, tmp_path):
    result = topoprune.prune(residual, IMAGES, "l1", 0.5)
    file = tmp_path / "small.safetensors"
    topoprune.save(result.model, file, kept=result.kept, example_inputs=IMAGES)
    fresh = Residual()
    loaded = topoprune.load(file, model=fresh).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), result.model(IMAGES))
    assert fresh.one[0].out_channels == 10
    with pytest.raises(
        ValueError, match="does not say which network it holds: save it with source, or load it with model"
    ):
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
