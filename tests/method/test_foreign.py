"""Networks that nobody here wrote: pruned and equal to masking, or refused in one line."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from foreign import IMAGES, NETWORKS, Residual, Rows, TwoAnswers, call, centred, silenced, tensors
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import topoprune
from topoprune.network import PruningWarning, structure


def made(name):
    torch.manual_seed(0)
    kind, inputs = NETWORKS[name]
    return centred(kind()).eval(), inputs


def state(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
    )


def same(before, after) -> bool:
    return before[1:] == after[1:] and all(torch.equal(before[0][name], after[0][name]) for name in before[0])


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(ratio=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_removal_equals_masking(name, ratio, seed):
    model, inputs = made(name)
    before = state(model)
    kept = topoprune.select(model, inputs, "random", ratio, seed)
    small = topoprune.remove(model, inputs, kept)
    assert same(before, state(model))
    with torch.no_grad():
        answers, expected = (tensors(call(m, inputs)) for m in (small, silenced(model, kept)))
    for answer, wanted in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_but_the_answer_loses_filters(name):
    model, inputs = made(name)
    kept = topoprune.select(model, inputs, "l1", 0.5)
    whole = {
        "U-Net": {"answer"},
        "squeezed": {"where"},
        "unflattened": {"last"},
        "two answers": {"two", "aux"},
        "experts": {"answer"},
    }
    modules = {layer: module for layer, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    for layer, module in modules.items():
        assert (len(kept[layer]) == module.out_channels) == (layer in whole.get(name, set())), layer


def test_a_layer_that_runs_in_training_alone_is_cut_too():
    model, inputs = made("two answers")
    small = topoprune.remove(model, inputs, {"one": [1, 4, 5]}).train()
    assert [tuple(x.shape) for x in small(inputs)] == [(2, 4), (2, 10, 12, 12), (2, 4)]


@pytest.mark.parametrize("types, shape", [((nn.Conv1d,), (2, 3, 16)), ((nn.Conv1d, nn.Linear), (2, 3, 16))])
def test_other_types_of_layers(types, shape):
    model = Rows().eval()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    kept = topoprune.select(model, inputs, "l2", 0.5, types=types)
    assert {layer: len(chosen) for layer, chosen in kept.items() if layer != "answer"} == {"one": 6, "two": 5}
    assert kept.get("answer", [0, 1, 2, 3]) == [0, 1, 2, 3]


def test_hidden_linear_layers_and_transposed_convolutions():
    flattened, inputs = made("flattened")
    assert len(topoprune.select(flattened, inputs, "l1", 0.5, types=(nn.Linear,))["three"]) == 10
    unet, inputs = made("U-Net")
    kept = topoprune.select(unet, inputs, "l1", 0.5, types=(nn.ConvTranspose2d,))
    assert {layer: len(chosen) for layer, chosen in kept.items()} == {"up": 5}


def test_linear_layers_that_read_permuted_images_lose_filters():
    model, inputs = made("channels last")
    kept = topoprune.select(model, inputs, "l1", 0.5, types=(nn.Conv2d, nn.Linear))
    assert {layer: len(chosen) for layer, chosen in kept.items()} == {
        "enter": 6,
        "wide": 10,
        "narrow": 6,
        "leave": 4,
        "answer": 4,
    }
    assert kept["enter"] == kept["narrow"]
    small = topoprune.remove(model, inputs, kept)
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), silenced(model, kept)(inputs), rtol=1e-4, atol=1e-5)


class Fixed(nn.Module):
    """A number of channels is written into forward."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.answer = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.Linear(64, 5),
        )

    def forward(self, x):
        x = F.adaptive_avg_pool2d(F.relu(self.two(F.relu(self.one(x)))), 2)
        return self.answer(x.view(x.size(0), 16 * 4))


class Averaged(nn.Module):
    """The mean over channels depends on their number."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.answer = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        return self.answer(F.relu(self.two(self.one(x).mean(1, keepdim=True))).mean((2, 3)))


class Normalised(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Conv2d(8, 6, 1)
        self.answer = nn.Linear(6, 4)

    def forward(self, x):
        return self.answer(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


@pytest.mark.parametrize(
    "make, layer, reason",
    [
        (Fixed, "two", "no longer runs without some of its filters"),
        (Averaged, "one", "a reduction in the network's forward mixes its channels"),
        (lambda: Normalised(nn.GroupNorm(2, 8)), "one", "native_group_norm in norm mixes its channels"),
        (lambda: Normalised(nn.LayerNorm([8, 16, 16])), "one", "layer_norm in norm mixes its channels"),
    ],
)
def test_what_cannot_be_removed_is_left_whole_and_said(make, layer, reason):
    torch.manual_seed(0)
    model = make().eval()
    with pytest.warns(PruningWarning, match=f"left whole: {layer} because .*{reason}"):
        result = topoprune.run_selection(model, IMAGES, "l1", 0.5)
    assert reason in result.left_whole[layer]
    assert len(result.kept[layer]) == 16 if layer == "two" else 8
    other = {"two": "one", "one": "two"}[layer]
    assert len(result.kept[other]) < model.get_submodule(other).out_channels
    small = topoprune.remove(model, IMAGES, result.kept)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), silenced(model, result.kept)(IMAGES), rtol=1e-4, atol=1e-5)


class Wider(nn.Module):
    """The shortcut without weights of He et al. (2016): zeros stand for the channels that the input does not have."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.answer = nn.Conv2d(16, 4, 3)

    def forward(self, x):
        x = F.relu(self.one(x))
        return self.answer(F.relu(self.two(x) + F.pad(x, (0, 0, 0, 0, 4, 4))))


def test_channels_of_zeros_are_not_removed():
    torch.manual_seed(0)
    model = Wider().eval()
    kept = topoprune.select(model, IMAGES, "l1", 0.5)
    assert {layer: len(chosen) for layer, chosen in kept.items()} == {"one": 4, "two": 12, "answer": 4}
    assert {0, 1, 2, 3, 12, 13, 14, 15} < set(kept["two"])
    small = topoprune.remove(model, IMAGES, kept)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), silenced(model, kept)(IMAGES), rtol=1e-4, atol=1e-5)


def test_filters_between_frames_of_a_constant_are_removed():
    """What is around a channel goes with it, whatever its value."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConstantPad2d((1, 0, 2, 1), 0.5), nn.Conv2d(8, 4, 3)).eval()
    kept = topoprune.select(model, IMAGES, "l1", 0.5)
    small = topoprune.remove(model, IMAGES, kept)
    unread = copy.deepcopy(model)
    unread[2].weight.data[:, sorted(set(range(8)) - set(kept["0"]))] = 0
    assert small[0].out_channels == 4
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), unread(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_maps_of_any_size_are_padded(size):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3)).eval()
    assert len(topoprune.select(model, torch.randn(2, 3, size, size), "l1", 0.5)["0"]) == 4


def test_instance_norm_and_group_norm_of_single_channels_are_cut():
    for norm in (
        nn.GroupNorm(8, 8),
        nn.GroupNorm(8, 8, affine=False),
        nn.InstanceNorm2d(8, affine=True),
        nn.InstanceNorm2d(8),
        nn.PReLU(8),
    ):
        model = Normalised(norm).eval()
        small = topoprune.remove(model, IMAGES, topoprune.select(model, IMAGES, "l1", 0.5))
        assert small.one.out_channels == 4 and small(IMAGES).shape == (2, 4)


def test_the_last_layer_keeps_its_outputs_whatever_comes_last():
    for last in ((), (nn.BatchNorm2d(6),), (nn.ReLU(),), (nn.ConvTranspose2d(6, 6, 3),)):
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 6, 3), *last).eval()
        kept = topoprune.select(model, IMAGES, "random", 0.5)
        small = topoprune.remove(model, IMAGES, kept)
        assert small(IMAGES).shape[1] == 6 and small[0].out_channels == 8


def test_a_lazy_layer_is_named_wherever_it_is_met():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for function in (topoprune.select, topoprune.prune):
        with pytest.raises(ValueError, match="^0 has no weights yet: run the network once"):
            function(lazy, IMAGES, "l1")


def test_the_choice_depends_on_nothing_but_weights_and_inputs():
    model, inputs = made("residual")
    wanted = topoprune.select(model, inputs, "l1", 0.5)
    frozen = copy.deepcopy(model).requires_grad_(False)
    frozen.one.requires_grad_(True)
    assert topoprune.select(frozen, inputs, "l1", 0.5) == wanted
    flags = [p.requires_grad for p in topoprune.remove(frozen, inputs, wanted).parameters()]
    assert flags == [p.requires_grad for p in frozen.parameters()]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert topoprune.select(model, inputs, "l1", 0.5) == wanted
            assert topoprune.remove(model, inputs, wanted)(inputs).shape == (2, 4)
    assert topoprune.select(copy.deepcopy(model).train(), inputs, "l1", 0.5) == wanted
    assert topoprune.select(copy.deepcopy(model).to(memory_format=torch.channels_last), inputs, "l1", 0.5) == wanted
    assert topoprune.select(copy.deepcopy(model).double(), inputs.double(), "l1", 0.5) == wanted
    wrapped = topoprune.select(nn.DataParallel(model), inputs, "l1", 0.5)
    assert wrapped == {f"module.{layer}": chosen for layer, chosen in wanted.items()}
    compiled = torch.compile(model, backend="eager")
    kept = topoprune.select(compiled, inputs, "l1", 0.5)
    assert kept == {f"_orig_mod.{layer}": chosen for layer, chosen in wanted.items()}
    assert topoprune.remove(compiled, inputs, kept)(inputs).shape == (2, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, inputs = made("residual")
    half = model.to(dtype)
    small = topoprune.remove(half, inputs.to(dtype), topoprune.select(half, inputs.to(dtype), "l2", 0.5))
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_single_modes_stay_as_they_are():
    model, inputs = made("residual")
    model.train()
    model.one[1].eval()
    before = state(model)
    topoprune.select(model, inputs, "topological", 0.5, space="activations", population=8, generations=1)
    topoprune.select(model, inputs, "taylor", 0.5)
    topoprune.cost(model, inputs, seconds=0.01)
    small = topoprune.remove(model, inputs, topoprune.select(model, inputs, "magnitude", 0.5))
    assert same(before, state(model))
    assert small.training and not small.one[1].training and small.two[1].training


def test_a_network_that_stores_what_it_computes():
    class Remembers(Residual):
        def forward(self, x):
            self.seen = super().forward(x)
            return self.seen

    model = Remembers().eval()
    kept = topoprune.select(model, IMAGES, "taylor", 0.5)
    assert not hasattr(model, "seen")
    model(IMAGES)  # stores a tensor with a graph
    assert topoprune.remove(model, IMAGES, kept)(IMAGES).shape == (2, 4)


def weight_norm_hook():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Conv2d(3, 8, 3))


@pytest.mark.parametrize(
    "layer, cure",
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), "0 has a parametrized weight: .*remove_pa"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3)), "remove_parametrizations"),
        (lambda: nn.utils.prune.l1_unstructured(nn.Conv2d(3, 8, 3), "weight", 0.5), "torch.nn.utils.prune.remove"),
        (weight_norm_hook, "remove_weight_norm"),
        (lambda: nn.utils.spectral_norm(nn.Conv2d(3, 8, 3)), "remove_spectral_norm"),
        (lambda: nn.LazyConv2d(8, 3), "0 has no weights yet: run the network once"),
        (lambda: torch.jit.script(nn.Conv2d(3, 8, 3)), "0 is TorchScript: prune the nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_cut_is_refused_in_one_line(layer, cure):
    model = nn.Sequential(layer(), nn.ReLU(), nn.Conv2d(8, 4, 3))
    for attempt in (lambda: topoprune.select(model, IMAGES, "l1"), lambda: topoprune.remove(model, IMAGES, {"0": [0]})):
        with pytest.raises(ValueError, match=cure) as refused:
            attempt()
        assert "\n" not in str(refused.value)


def test_a_refusal_leaves_nothing_behind():
    model, _ = made("residual")
    before = state(model)
    bad = torch.randn(2, 5, 8, 8)
    attempts = [
        lambda: topoprune.select(model, bad, "l1"),
        lambda: topoprune.remove(model, bad, {"one.0": [0]}),
        lambda: topoprune.cost(model, bad),
        lambda: topoprune.couplings(model, bad),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"Residual does not run on example inputs of shape \(2, 5, 8, 8\)"):
            attempt()
    assert same(before, state(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.save(model, io.BytesIO())


@pytest.mark.parametrize(
    "kept, message",
    [
        ({"grouped.0": [*range(12)]}, r"grouped.0 must keep or lose the filters \[.*\] together: a grouped layer"),
        ({"enter.0": [0, 1, 2, 3]}, "enter.0 must keep or lose the filters"),
    ],
)
def test_uneven_groups_are_refused(kept, message):
    model, inputs = made("grouped")
    with pytest.raises(ValueError, match=message):
        topoprune.remove(model, inputs, kept)


def test_a_filter_that_cannot_be_removed_is_named():
    model, inputs = made("two answers")
    with pytest.raises(ValueError, match="two must keep filter 3: its channel cannot be removed"):
        topoprune.remove(model, inputs, {"two": [0, 1, 2, 4, 5, 6, 7, 8, 9]})


def test_rounding_counts_the_filters_of_the_coupling():
    model, inputs = made("grouped")
    kept = topoprune.select(model, inputs, "l1", 0.3, round_to=8)
    assert [len(kept[layer]) for layer in ("enter.0", "grouped.0", "leave.0")] == [16, 24, 8]
    kept = topoprune.select(model, inputs, "l1", 0.6, round_to=8)
    assert [len(kept[layer]) for layer in ("enter.0", "grouped.0", "leave.0")] == [8, 16, 8]


def test_unverified_couplings_are_those_that_were_traced():
    torch.manual_seed(0)
    model = Fixed().eval()
    assert [c.layers for c in structure(model, IMAGES, check=False).couplings] == [("one",), ("two",)]
    assert [c.layers for c in structure(model, IMAGES).couplings] == [("one",)]
    kept = {"two": list(range(8))}
    with pytest.raises(ValueError, match="cannot be removed from two: the network no longer runs"):
        topoprune.remove(model, IMAGES, kept)
    assert topoprune.remove(model, IMAGES, kept, check=False).two.out_channels == 8


def test_a_meta_network_is_pruned_by_shape():
    model = Residual().to("meta")
    kept = topoprune.select(model, IMAGES.to("meta"), "random", 0.5)
    assert {layer: len(chosen) for layer, chosen in kept.items()}["one.0"] == 5


def test_networks_with_two_answers_keep_both():
    torch.manual_seed(0)
    model = TwoAnswers().eval()
    assert structure(model, IMAGES).left_whole == {
        "two": "its channels are an output of the network",
        "aux": "its channels are an output of the network",
    }


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model.append(nn.Conv2d(8, 2, 1))
    model[4].weight = model[2].weight
    inputs = torch.randn(2, 3, 12, 12)
    small = topoprune.remove(model, inputs, topoprune.select(model, inputs, "l1", 0.5))
    assert small[2].weight is small[4].weight and len(small[2].weight) == 4
    assert len(list(small.parameters())) == len(list(model.parameters()))
