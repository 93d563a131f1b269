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
from topoprune.network import PruningWarning, structure
from topoprune.topological import SEARCHES, points


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
    return sorted(coupling.readers)[0].name.removesuffix(".weight")


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
    parts = covariance(rows[..., :3]), covariance(rows[..., 3:])
    np.testing.assert_allclose(channels.covariance, sum(parts), rtol=1e-4, atol=1e-6)
    weights = model[2].weight.detach().double().pow(2).sum((2, 3)).unflatten(0, (2, -1)).sum(1).numpy()
    mass = sum(part.diagonal() * own for part, own in zip(parts, weights, strict=True))
    np.testing.assert_allclose(channels.mass(), mass, rtol=1e-4)
    np.testing.assert_allclose((channels.points() ** 2).sum(1), mass, rtol=1e-4)


def flat_reader():
    """A linear layer after a map of 2 x 2 positions: it ignores channel 1 wherever that is active."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 2)).eval()
    inputs = images(size=4)
    inputs[:, :, 1] = 0
    with torch.no_grad():
        model[0].weight[1, :, 1:] = model[0].bias[1] = 0  # row 0 of the map reads row 0 of the image, row 1 row 1
        model[3].weight.unflatten(1, (5, 2, 2))[:, 1, 0] = 0
    return model, inputs


def test_mass_is_what_the_readers_lose_at_each_position():
    model, inputs = flat_reader()
    [channels] = responses(model, inputs, couplings(model, inputs))
    tensors = read(model, "3", inputs), model[3].weight.detach()
    rows, weights = (tensor.double().unflatten(1, (5, 4)) for tensor in tensors)
    mass = sum(rows[:, :, p].var(0, correction=0) * weights[:, :, p].pow(2).sum(0) for p in range(4))
    np.testing.assert_allclose(channels.mass(), mass, rtol=1e-4, atol=1e-9)
    assert rows[:, 1].var(0).sum() > 0 and channels.mass()[1] == 0 and (channels.mass()[[0, 2, 3, 4]] > 0).all()
    for options in ({"method": "qr"}, *({"space": "functional", "search": search} for search in SEARCHES)):
        assert 1 not in select(model, inputs, ratio=0.2, **options)["0"]


def test_moments_are_exact_far_from_zero():
    model, inputs = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 3)).eval(), images(160)
    for offset in (0, 1000, 3000):
        [channels] = responses(model, inputs + offset, couplings(model, inputs))
        expected = covariance(copy.deepcopy(model)[0].double()((inputs + offset).double()).detach().movedim(1, -1))
        np.testing.assert_allclose(channels.covariance, expected, atol=3e-5 * expected.max())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))

    def forward(self, x, scale, shift):
        return self.inner(x * scale + shift)


def test_inputs_that_have_no_part_in_the_batch_go_with_every_batch():
    model, inputs = Scaled().eval(), (images(300), torch.tensor(2.0), torch.ones(1, 3, 1, 1))
    [channels] = responses(model, inputs, couplings(model, inputs))
    expected = covariance(model.inner[:2](2 * inputs[0] + 1).detach().double().movedim(1, -1))
    np.testing.assert_allclose(channels.covariance, expected, rtol=1e-4, atol=1e-6)


class OneByOne(nn.Sequential):
    """Calls its layers on single inputs without a batch axis."""

    def forward(self, x):
        return torch.stack([super(OneByOne, self).forward(image) for image in x])


@pytest.mark.parametrize("kind", ["convolutions", "linear"])
def test_layers_that_are_called_on_single_inputs_have_the_moments_of_the_batch(kind):
    torch.manual_seed(0)
    layers, types = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)], (nn.Conv2d,)
    if kind == "linear":
        layers, types = [nn.Flatten(0), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 2)], (nn.Linear,)
    single, inputs = OneByOne(*layers).eval(), images()
    whole = nn.Sequential(*([nn.Flatten(), *layers[1:]] if kind == "linear" else layers)).eval()
    [one], [every] = (responses(m, inputs, structure(m, inputs, types).couplings) for m in (single, whole))
    np.testing.assert_allclose(one.covariance, every.covariance, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.weights, every.weights)
    [one], [every] = (points(m, inputs, structure(m, inputs, types).couplings, "activations") for m in (single, whole))
    np.testing.assert_allclose(one @ one.T, every @ every.T, rtol=1e-4, atol=1e-6)


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


class Auxiliary(nn.Module):
    """A head that runs in training alone."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)
        self.head = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        x = self.first(x).relu()
        return (self.last(x), self.head(x)) if self.training else self.last(x)


def test_channels_that_evaluation_does_not_reach_count_as_independent():
    model, inputs = Auxiliary(), images()
    found = {coupling.layers[0]: coupling for coupling in couplings(model, inputs)}
    first, head = responses(model, inputs, [found["first"], found["head.0"]])
    assert not np.allclose(first.covariance, np.eye(6)) and np.array_equal(head.covariance, np.eye(8))
    with pytest.raises(ValueError, match="head.0 has no activations: the network does not call it in evaluation mode"):
        select(model, inputs, "folding", space="activations")


@pytest.mark.parametrize("engine", [{}, {"engine": "nni"}], ids=["own", "nni"])
def test_the_l2_norm_in_the_functional_cloud_is_the_mass(engine):
    model, inputs = chain(), images()
    own = couplings(model, inputs)
    kept = select(model, inputs, "l2", 0.5, space="functional", **engine)
    for coupling, channels in zip(own, responses(model, inputs, own), strict=True):
        heaviest = np.argsort(-channels.mass())[: coupling.choices - coupling.choices // 2]
        assert kept[coupling.layers[0]] == sorted(heaviest.tolist())
    assert kept != select(model, inputs, "l2", 0.5)


WAYS = {
    "qr": {"method": "qr"},
    "functional": {"space": "functional", "search": "cover"},
    "activations": {"method": "folding", "space": "activations"},
    "taylor": {"method": "taylor"},
}
"""Choices that run the network."""

of_every_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).eval()


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_in_part(model):
    model[0] = torch.compile(model[0], backend="eager")
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # of the hooks that count FLOPs
@of_every_way
@pytest.mark.parametrize("compiled", [compiled_whole, compiled_in_part, compiled_in_place])
def test_a_compiled_network_that_has_run_has_the_choice_of_the_plain_one(options, compiled):
    model, inputs = compiled(classifier()), images()
    with torch.no_grad():
        model(inputs[:2]), model(inputs)
    kept, expected = (select(network, inputs, check=False, **options) for network in (model, classifier()))
    assert [*kept.values()] == [*expected.values()]


class Careless(nn.Module):
    """Overwrites its inputs, counts its calls and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.enter, self.inner, self.calls = nn.ReLU(inplace=True), classifier(), 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.calls += 1
        return self.inner(self.enter(x)) + 0 * torch.rand(1)


@of_every_way
def test_a_choice_leaves_the_network_its_inputs_and_the_random_numbers_alone(options):
    model, inputs = Careless().eval(), images()
    before, state = inputs.clone(), torch.get_rng_state()
    select(model, inputs, **options)
    assert torch.equal(inputs, before) and torch.equal(torch.get_rng_state(), state)
    assert model.count == model.calls == 0 and not model.training


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
    options = dict(method="topological", space="functional", search=search)
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


def with_dead(dead):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()
    with torch.no_grad():
        model[0].weight[dead], model[0].bias[dead] = 0, -1
    return model


@pytest.mark.parametrize("metric", ["sine", "euclidean"])
@pytest.mark.parametrize("search", SEARCHES)
def test_no_search_keeps_a_dead_channel_before_a_living_one(search, metric):
    options = {"search": search, "metric": metric}
    if search == "genetic":
        options |= {"population": 8, "generations": 2}
    for dead, expected in (([1, 4, 6], [0, 2, 3, 5, 7]), ([0, 1, 4, 6, 7], [0, 1, 2, 3, 5])):
        assert select(with_dead(dead), images(), ratio=0.375, space="functional", **options)["0"] == expected


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


def test_folding_of_copies_keeps_one_of_each_and_fills_up():
    kinds = np.random.default_rng(0).normal(size=(3, 4))
    cloud = kinds[[0, 0, 1, 0, 1, 2]]
    assert np.ptp(cloud[criteria.folding(cloud, 2)], axis=0).all()
    for keep, expected in ((3, {0, 2, 5}), (4, {0, 1, 2, 5}), (6, {*range(6)})):
        assert {*criteria.folding(cloud, keep)} == expected
    assert len({*criteria.folding(np.zeros((5, 2)), 3)}) == 3


@pytest.mark.parametrize("seed", range(20))
def test_folding_needs_no_clusters_that_all_have_members(seed):
    generator = np.random.default_rng(seed)
    cloud = generator.integers(0, 4, size=(40, 2)).astype(np.float32)
    for keep in range(1, 40, 3):
        assert len({*criteria.folding(cloud, keep)}) == keep


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
    with pytest.raises(ValueError, match="example inputs hold NaN"):
        select(model, inputs, "qr", check=False)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="unknown option space of method 'qr': it takes none"):
        select(chain(), images(), "qr", space="weights")
    with pytest.raises(ValueError, match="unknown search 'tree': choose from genetic, random, greedy, farthest, cover"):
        select(chain(), images(), "topological", search="tree")
    with pytest.raises(ValueError, match="unknown space 'function': choose from weights, folded, activations, funct"):
        select(chain(), images(), "topological", space="function")


@pytest.mark.parametrize(
    "options", [{"method": "qr"}, {"method": "topological", "space": "functional", "search": "cover"}]
)
def test_a_choice_on_fewer_values_than_channels_warns(options):
    """Six and eight channels are read at four positions of an image; two images have eight values."""
    with pytest.warns(
        PruningWarning, match="the 8 channels of 3 are compared on 4 values each, and so are those of 1 more"
    ):
        select(chain(), images(1, size=4), **options)
    select(chain(), images(2, size=4), **options)
