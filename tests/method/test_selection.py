"""Each method against an independent statement of its criterion."""

import copy

import numpy as np
import pytest
import torch
import torch_pruning as tp
import torchvision
from torch import nn

import topoprune
from topoprune import fitness, genetic
from topoprune.costs import flops
from topoprune.models import build
from topoprune.network import couplings, remove
from topoprune.selection import NETWORK_CRITERIA, NNI_PRUNERS
from topoprune.study import LAYERWISE
from topoprune.topological import points

EXAMPLE = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
RATIO = 0.6


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build("vgg16", width=1 / 8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def scores(model, name, score):
    """What `score` (filters as rows -> one number each) keeps of the layer."""
    rows = dict(model.named_modules())[name].weight.detach().flatten(1)
    removed = int(len(rows) * RATIO)
    return sorted(score(rows).argsort()[removed:].tolist())


CRITERIA = {
    "l1": lambda rows: rows.abs().sum(1),
    "l2": lambda rows: rows.square().sum(1).sqrt(),
    "fpgm": lambda rows: torch.cdist(rows.double(), rows.double()).sum(1),
}


@pytest.mark.parametrize("method", CRITERIA)
def test_a_criterion_keeps_the_largest_scores(model, method):
    kept = topoprune.select(model, EXAMPLE, method, RATIO)
    assert len(kept) == 13
    for layer, chosen in kept.items():
        assert chosen == scores(model, layer, CRITERIA[method])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method, pruner", NNI_PRUNERS.items())
def test_a_criterion_chooses_what_nni_chooses_on_the_network(model, method, pruner, ratio):
    from nni.compression import pruning

    made = getattr(pruning, pruner)(model, [{"op_types": ["Conv2d"], "sparse_ratio": ratio}])
    _, masks = made.compress()
    made.unwrap_model()
    for engine in ({}, {"engine": "nni"}):
        for layer, chosen in topoprune.select(model, EXAMPLE, method, ratio, **engine).items():
            mask = masks[layer]["weight"].flatten(1).amax(1)
            assert chosen == mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("method", LAYERWISE)
def test_every_layerwise_method_keeps_the_same_number(model, method):
    options = {"population": 8, "generations": 1, "elites": 2} if method == "topological" else {}
    for ratio in (0.0, 0.3, 0.95):
        kept = topoprune.select(model, EXAMPLE, method, ratio, **options)
        for group in couplings(model, EXAMPLE):
            chosen = kept[group.layers[0]]
            assert chosen == sorted(set(chosen))
            assert len(chosen) == group.choices - int(group.choices * ratio) >= 1


@pytest.mark.parametrize("method", LAYERWISE)
def test_kept_filters_come_in_multiples(model, method):
    options = {"population": 8, "generations": 1, "elites": 2} if method == "topological" else {}
    kept = topoprune.select(model, EXAMPLE, method, RATIO, round_to=8, **options)
    plain = topoprune.select(model, EXAMPLE, "l1", RATIO)
    for layer, chosen in kept.items():
        assert len(chosen) % 8 == 0 and 0 <= len(chosen) - len(plain[layer]) < 8
    with pytest.raises(ValueError, match="round_to must be at least 1"):
        topoprune.select(model, EXAMPLE, "l1", RATIO, round_to=0)


def test_a_layer_narrower_than_the_multiple_stays_whole(model):
    kept = topoprune.select(model, EXAMPLE, "l1", RATIO, round_to=32)
    assert [len(chosen) for chosen in kept.values()] == [8, 8, 16, 16] + [32] * 9


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.6])
def test_criteria_over_the_architecture_match_the_flops(model, method, ratio):
    kept = topoprune.select(model, EXAMPLE, method, ratio)
    layerwise = topoprune.select(model, EXAMPLE, "l1", ratio)
    spent, goal = (flops(remove(model, EXAMPLE, choice), EXAMPLE) for choice in (kept, layerwise))
    assert spent == pytest.approx(goal, rel=0.01)
    assert all(kept.values())


def torch_pruning_scores(model, importance, example=EXAMPLE):
    """First layer -> the scores that Torch-Pruning gives to its filters."""
    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, example)
    groups = graph.get_all_groups(root_module_types=[nn.Conv2d])
    return {names[group[0].dep.target.module]: importance(group) for group in groups}


@pytest.mark.parametrize("network", ["vgg", "resnet"])
def test_magnitude_is_the_group_magnitude_of_torch_pruning(model, network):
    if network == "resnet":
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None, num_classes=7).eval()
    groups = couplings(model, EXAMPLE)
    own = NETWORK_CRITERIA["magnitude"](model, EXAMPLE, groups)
    expected = torch_pruning_scores(copy.deepcopy(model), tp.importance.GroupMagnitudeImportance())
    for group, score in zip(groups, own, strict=True):
        root = next(layer for layer in group.layers if layer in expected)
        torch.testing.assert_close(score, expected[root], rtol=1e-4, atol=1e-6)


def test_global_magnitude_is_one_threshold_on_its_scores(model):
    """What stays scores above what goes, but for the filters that would overshoot the FLOPs."""
    groups = couplings(model, EXAMPLE)
    kept = topoprune.select(model, EXAMPLE, "magnitude", 0.3)
    stays, goes = [], []
    for group, score in zip(groups, NETWORK_CRITERIA["magnitude"](model, EXAMPLE, groups), strict=True):
        mask = torch.zeros(group.choices, dtype=torch.bool)
        mask[kept[group.layers[0]]] = True
        stays += score[mask].tolist() if mask.sum() > 1 else []
        goes += score[~mask].tolist()
    level = sorted(goes)[int(0.95 * len(goes))]
    assert sum(value < level for value in stays) <= 0.02 * len(stays)


def test_taylor_scores_are_weight_times_gradient(model):
    """The last convolution, by hand: |w g| of its filters, of its norm and of the next layer."""
    judged = copy.deepcopy(model)
    labels = torch.arange(8)
    nn.functional.cross_entropy(judged(EXAMPLE), labels).backward()
    score = NETWORK_CRITERIA["taylor"](model, EXAMPLE, couplings(model, EXAMPLE), labels=labels)[-1]
    convolution, norm, linear = judged.features[-4], judged.features[-3], judged.classifier
    parts = [
        (convolution.weight * convolution.weight.grad).flatten(1).sum(1).abs(),
        (norm.weight * norm.weight.grad).abs(),
        (linear.weight * linear.weight.grad).sum(0).abs(),
    ]
    expected = torch.stack(parts).mean(0)
    torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-8)


def test_taylor_takes_labels_and_leaves_the_network_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = topoprune.select(model, EXAMPLE, "taylor", RATIO)
    other = topoprune.select(model, EXAMPLE, "taylor", RATIO, labels=torch.arange(8))
    assert own != other
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["random", "topological"])
def test_a_seed_gives_one_choice(model, method):
    options = {"population": 8, "generations": 2, "elites": 2} if method == "topological" else {}
    first, again, other = (topoprune.select(model, EXAMPLE, method, 0.5, seed, **options) for seed in (1, 1, 2))
    assert first == again != other


def test_the_topological_choice_is_the_best_found_by_its_search(model):
    """The value that the search reports is the fitness of what was kept."""
    made = topoprune.run_selection(model, EXAMPLE, "topological", 0.5, population=8, generations=3, elites=2)
    groups = couplings(model, EXAMPLE)
    for group, cloud in zip(groups, points(model, EXAMPLE, groups), strict=True):
        layer = group.layers[0]
        reference = fitness.Fitness(fitness.distance_matrix(cloud), engine="reference")
        value = reference(np.array([made.kept[layer]]))[0]
        assert made.searches[layer][-1]["best"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("search", genetic.SEARCHES)
def test_every_search_serves(model, search):
    kept = topoprune.select(
        model,
        EXAMPLE,
        "topological",
        0.5,
        search=search,
        population=8,
        generations=2,
        elites=2,
        pointed=True,
        metric="cosine",
        dimensions=(0,),
    )
    assert all(chosen for chosen in kept.values())


def test_folded_filters_are_scaled_by_their_norm(model):
    groups = couplings(model, EXAMPLE)
    plain, folded = (points(model, EXAMPLE, groups, space)[0] for space in ("weights", "folded"))
    norm = model.features[1]
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    np.testing.assert_allclose(folded, plain * scale[:, None], rtol=1e-5)


def test_activations_are_the_layer_s_outputs(model):
    groups = couplings(model, EXAMPLE)
    cloud = points(model, EXAMPLE, groups, "activations")[0]
    with torch.no_grad():
        output = model.features[:2](EXAMPLE)
    pooled = nn.functional.adaptive_avg_pool2d(output, 4).transpose(0, 1).flatten(1)
    np.testing.assert_allclose(cloud, pooled.numpy() / len(EXAMPLE) ** 0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "magic"}, "unknown method 'magic': choose from random, l1, l2, fpgm, folding, topological"),
        ({"ratio": 1.0}, r"ratio must lie in \[0, 1\), got 1.0: every layer keeps at least one"),
        ({"ratio": -0.1}, r"ratio must lie in \[0, 1\), got -0.1"),
        ({"method": "l1", "metric": "sine"}, "unknown option metric of method 'l1': it takes engine, space"),
        ({"n_genn": 6}, "unknown option n_genn of method 'topological'"),
        ({"space": "soul"}, "unknown space 'soul'"),
        ({"metric": "taxi"}, "metric"),
        ({"search": "luck"}, "unknown search 'luck'"),
    ],
)
def test_wrong_arguments_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        topoprune.select(model, EXAMPLE, **arguments)


def test_weights_that_are_not_finite_are_refused(model):
    torch.manual_seed(0)
    broken = build("vgg16", width=1 / 16)
    broken.features[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="features.0 has values that are NaN or infinite"):
        topoprune.select(broken, EXAMPLE, "l1", 0.5)
