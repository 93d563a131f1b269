"""Each method against an independent statement of its criterion."""

import numpy as np
import pytest
import torch
from torch import nn

import topoprune
from topoprune import fitness, genetic, pruning
from topoprune.models import build
from topoprune.network import couplings, flops, remove
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
def test_nni_keeps_what_the_criterion_says(model, method):
    kept = topoprune.select(model, EXAMPLE, method, RATIO)
    assert len(kept) == 13
    for layer, chosen in kept.items():
        assert chosen == scores(model, layer, CRITERIA[method])


@pytest.mark.parametrize("method, pruner", [("l1", "L1NormPruner"), ("l2", "L2NormPruner"), ("fpgm", "FPGMPruner")])
def test_stand_ins_choose_what_nni_chooses_on_the_network(model, method, pruner):
    from nni.compression import pruning

    made = getattr(pruning, pruner)(model, [{"op_types": ["Conv2d"], "sparse_ratio": RATIO}])
    _, masks = made.compress()
    made.unwrap_model()
    for layer, chosen in topoprune.select(model, EXAMPLE, method, RATIO).items():
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
            assert len(chosen) == group.filters - int(group.filters * ratio) >= 1


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
    assert spent == pytest.approx(goal, rel=0.02)
    assert all(kept.values())


def test_global_magnitude_is_one_threshold_on_its_scores(model):
    """The scores of Torch-Pruning, cut at one level: what stays is above, what goes below."""
    import torch_pruning as tp

    from topoprune.network import importances

    groups = couplings(model, EXAMPLE)
    kept = topoprune.select(model, EXAMPLE, "magnitude", 0.3)
    scores = importances(model, EXAMPLE, groups, tp.importance.GroupMagnitudeImportance())
    stays, goes = [], []
    for group, score in zip(groups, scores, strict=True):
        mask = torch.zeros(group.choices, dtype=torch.bool)
        mask[kept[group.layers[0]]] = True
        stays += score[mask].tolist() if mask.sum() > 1 else []
        goes += score[~mask].tolist()
    assert min(stays) >= max(goes)


def test_taylor_scores_are_weight_times_gradient(model):
    """The last convolution, by hand: |w g| of its filters, of its norm and of the next layer."""
    import copy

    import torch_pruning as tp

    from topoprune.network import importances

    judged = copy.deepcopy(model)
    labels = torch.arange(8)
    nn.functional.cross_entropy(judged(EXAMPLE), labels).backward()
    groups = couplings(judged, EXAMPLE)
    criterion = tp.importance.GroupTaylorImportance(normalizer=None, multivariable=True)
    score = importances(judged, EXAMPLE, groups, criterion)[-1]
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
        ({"method": "magic"}, "unknown method 'magic': choose from random, l1, l2, fpgm, topological"),
        ({"ratio": 1.0}, r"ratio must lie in \[0, 1\), got 1.0: every layer keeps at least one"),
        ({"ratio": -0.1}, r"ratio must lie in \[0, 1\), got -0.1"),
        ({"method": "l1", "space": "weights"}, "unknown option space of method 'l1': it takes none"),
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


def test_weights_that_would_run_code_are_refused(tmp_path, monkeypatch):
    """torchvision's cache, whose files it does not check again."""

    class Hostile:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.save({"fc.weight": Hostile()}, weights)
    with pytest.raises(ValueError, match="the weights DEFAULT of resnet18 are not to be had"):
        pruning.prune("resnet18", "l1", 0.5, 0, tmp_path / "small.safetensors")
    assert not (tmp_path / "ran").exists()
    torch.load(weights, weights_only=False)
    assert (tmp_path / "ran").exists()  # as it would have
