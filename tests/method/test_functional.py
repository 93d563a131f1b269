"""What channels compute: moments against plain sums, and the criteria that judge by them."""

import copy

import numpy as np
import pytest
import scipy.linalg
import torch
from foreign import Concatenated, Flattened, Grouped, Residual, Shared, Squeezed, block
from torch import nn

from topoprune import couplings, criteria, distance_matrix, remove, run_selection, select
from topoprune.functional import Responses, responses


def chain():
    torch.manual_seed(0)
    model = nn.Sequential(*block(3, 6), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return model.eval()


def images(count=24, size=8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def read(model, layer, inputs):
    """The inputs of a layer."""
    caught = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    with torch.no_grad():
        model(inputs)
    hook.remove()
    return torch.cat(caught).double()


def covariance(rows):
    return np.cov(rows.flatten(0, -2).numpy().T, bias=True)


def first_reader(model, coupling):
    return sorted(coupling.readers)[0].tensor.removesuffix(".weight")


def test_moments_of_a_chain_are_those_of_what_the_next_layer_reads():
    model, inputs = chain(), images()
    for coupling, channels in zip(
        couplings(model, inputs), responses(model, inputs, couplings(model, inputs)), strict=True
    ):
        reader = model.get_submodule(first_reader(model, coupling))
        rows = read(model, first_reader(model, coupling), inputs).movedim(1, -1)
        np.testing.assert_allclose(channels.covariance, covariance(rows), rtol=1e-4, atol=1e-6)
        weights = reader.weight.detach().double().transpose(0, 1).flatten(1).numpy()
        np.testing.assert_allclose(channels.weights, weights @ weights.T, rtol=1e-6)
        mass = (weights**2).sum(1) * covariance(rows).diagonal()
        np.testing.assert_allclose(channels.mass(), mass, rtol=1e-3)
        np.testing.assert_allclose((channels.points() ** 2).sum(1), mass, rtol=1e-3)
        rho = np.corrcoef(rows.flatten(0, -2).numpy().T)
        expected = np.sqrt(np.clip(1 - rho**2, 0, 1))
        np.testing.assert_allclose(distance_matrix(channels.points(), "sine"), expected, atol=1e-3)


def test_moments_of_a_flattened_map_are_summed_over_positions():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 2)).eval()
    inputs = images(size=4)
    [channels] = responses(model, inputs, couplings(model, inputs))
    rows = read(model, "3", inputs).unflatten(1, (5, 4))
    np.testing.assert_allclose(channels.covariance, sum(covariance(rows[:, :, p]) for p in range(4)), atol=1e-6)
    weights = model[3].weight.detach().double().unflatten(1, (5, 4))
    gram = sum(weights[:, :, p].T @ weights[:, :, p] for p in range(4))
    np.testing.assert_allclose(channels.weights, gram, rtol=1e-5)


def test_moments_of_a_grouped_reader_are_those_of_the_channels_that_go_together():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten()).eval()
    inputs = images(size=6)
    coupling, *_ = couplings(model, inputs)
    assert coupling.choices == 3
    channels, *_ = responses(model, inputs, couplings(model, inputs))
    rows = read(model, "2", inputs).movedim(1, -1)
    expected = covariance(rows[..., :3]) + covariance(rows[..., 3:])
    np.testing.assert_allclose(channels.covariance, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Residual, Grouped, Concatenated, Shared, Squeezed, Flattened])
def test_any_network_has_responses_and_is_left_as_it_was(kind):
    torch.manual_seed(0)
    model, inputs = kind().train(), images(size=16)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    found = couplings(model, inputs)
    for channels, coupling in zip(responses(model, inputs, found), found, strict=True):
        assert len(channels) == coupling.choices and channels.mass().max() > 0
        assert np.linalg.eigvalsh(channels.covariance).min() > -1e-6 * channels.covariance.max()
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class ByFunction(nn.Module):
    """Layers whose weights are used without calling them: the second alone, or both."""

    def __init__(self, both):
        super().__init__()
        self.both, self.first, self.second = both, nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        first = nn.functional.linear(x, self.first.weight, self.first.bias) if self.both else self.first(x)
        return nn.functional.linear(first.relu(), self.second.weight, self.second.bias)


def test_channels_whose_reader_is_not_called_are_judged_by_what_their_layers_write():
    torch.manual_seed(0)
    model, inputs = ByFunction(both=False).eval(), torch.randn(40, 3)
    with torch.no_grad():
        for copied, source in ((1, 0), (3, 2), (5, 4)):
            model.first.weight[copied], model.first.bias[copied] = (2 * x[source] for x in model.first.parameters())
    kept = select(model, inputs, "topological", space="functional", search="merge", types=(nn.Linear,))["first"]
    assert [filters // 2 for filters in kept] == [0, 1, 2]


def test_channels_that_nothing_observes_are_judged_by_the_weights_that_read_them():
    torch.manual_seed(0)
    model, inputs = ByFunction(both=True).eval(), torch.randn(40, 3)
    kept = select(model, inputs, "qr", types=(nn.Linear,))["first"]
    norms = model.second.weight.detach().norm(dim=0)
    assert kept == sorted(norms.argsort(descending=True)[:3].tolist())


def doubled(model, layer, reader, factor):
    """The same function: every channel of a layer larger, its reader's weights smaller."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[layer].weight.mul_(factor[:, None, None, None])
        model[layer].bias.mul_(factor)
        model[reader].weight.div_(factor[None, :, None, None])
    return model


@pytest.mark.parametrize("search", ["merge", "cover", "farthest"])
def test_the_choice_does_not_depend_on_the_scale_of_a_channel(search):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3)).eval()
    factor = torch.linspace(0.1, 9, 12)
    scaled, inputs = doubled(model, 0, 2, factor), images()
    options = dict(method="topological", space="functional", search=search, dimensions=(0,))
    assert select(model, inputs, **options) == select(scaled, inputs, **options)
    assert select(model, inputs, "qr") == select(scaled, inputs, "qr")
    assert select(model, inputs, "l1") != select(scaled, inputs, "l1")


@pytest.mark.parametrize(
    "options",
    [
        {"method": "topological", "space": "functional", "search": "merge"},
        {"method": "topological", "space": "functional", "search": "cover"},
        {"method": "qr"},
        {"method": "obs"},
    ],
)
def test_copies_and_dead_channels_go_first(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        for copied, source in ((1, 0), (3, 2), (5, 4)):
            model[0].weight[copied], model[0].bias[copied] = 2 * model[0].weight[source], 2 * model[0].bias[source]
        model[0].weight[7], model[0].bias[7] = 0, -1
    kept = select(model, images(), ratio=0.5, **options)["0"]
    assert [{0, 1} & {*kept}, {2, 3} & {*kept}, {4, 5} & {*kept}] == [{k} for k in kept[:3]] and kept[3] == 6


def weighted_activations(model, inputs):
    rows = read(model, "2", inputs).movedim(1, -1).flatten(0, -2).numpy()
    return (rows - rows.mean(0)) * model[2].weight.detach().double().pow(2).sum((0, 2, 3)).sqrt().numpy()


def test_qr_is_the_pivoted_factorisation_of_the_activations_themselves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 4, 3)).eval()
    inputs = images()
    _, _, pivots = scipy.linalg.qr(weighted_activations(model, inputs), mode="economic", pivoting=True)
    for ratio in (0.3, 0.5, 0.8):
        kept = select(model, inputs, "qr", ratio)["0"]
        assert kept == sorted(pivots[: len(kept)].tolist())


def test_obs_removes_the_channel_that_the_others_replace_best():
    generator = np.random.default_rng(0)
    rows, weights = generator.normal(size=(200, 7)) @ generator.normal(size=(7, 7)), generator.normal(size=(7, 5))
    rows -= rows.mean(0)
    left, current = [*range(7)], weights
    for keep in range(6, 0, -1):
        losses = []
        for position in range(len(left)):
            others = [i for i in left if i != left[position]]
            fitted, *_ = np.linalg.lstsq(rows[:, others], rows[:, left] @ current, rcond=None)
            losses.append((np.square(rows[:, left] @ current - rows[:, others] @ fitted).sum(), others, fitted))
        _, left, current = min(losses, key=lambda loss: loss[0])
        channels = Responses(rows.T @ rows / 200, weights @ weights.T)
        assert criteria.obs(channels, keep, ridge=1e-12) == left


def test_folding_keeps_one_filter_of_each_cluster():
    generator = np.random.default_rng(0)
    cloud = np.repeat(np.eye(6) * 10, 4, axis=0) + generator.normal(size=(24, 6)) / 10
    assert sorted(i // 4 for i in criteria.folding(cloud, 6)) == [*range(6)]
    assert len(criteria.folding(cloud, 1)) == 1 and len(set(criteria.folding(cloud, 23))) == 23


def test_every_search_and_fitness_works_in_the_functional_space():
    model, inputs = chain(), images()
    for options in ({"search": "genetic"}, {"search": "greedy"}, {"search": "random"}, {"metric": "euclidean"}):
        budget = {"population": 4, "generations": 1}
        chosen = run_selection(model, inputs, "topological", space="functional", **budget, **options)
        assert [len(chosen.kept[layer]) for layer in chosen.searches] == [3, 4]
        remove(model, inputs, chosen.kept)


def test_damaged_inputs_are_named():
    model, inputs = chain(), images()
    inputs[0] = float("nan")
    with pytest.raises(ValueError, match="0 has values that are NaN or infinite.*check the inputs"):
        select(model, inputs, "qr", check=False)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="unknown option space of method 'qr': it takes none"):
        select(chain(), images(), "qr", space="weights")
    with pytest.raises(ValueError, match="unknown search 'tree': choose from genetic, random, greedy, farthest, cover"):
        select(chain(), images(), "topological", search="tree")
    with pytest.raises(ValueError, match="unknown space 'function': choose from weights, folded, activations, funct"):
        select(chain(), images(), "topological", space="function")
