"""What users bring beside networks of images: damaged values, random passes, odd operations, inputs and arguments."""

import contextlib
import copy
import json
from collections import deque
from dataclasses import dataclass
from types import MappingProxyType

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import topoprune
from topoprune import prune, remove, run_selection, select
from topoprune.files import FileError, FileWarning
from topoprune.network import PruningWarning, structure
from topoprune.selection import METHODS
from topoprune.storage import prune_file
from topoprune.training import Recipe, accuracy, recalibrate, train

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5
Conv = nn.Conv2d


def classifier(seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(Conv(3, 8, 3), nn.ReLU(), Conv(8, 8, 3), nn.ReLU(), Conv(8, 4, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


# damaged values


@pytest.mark.parametrize("method", METHODS)
def test_no_method_chooses_among_damaged_weights(method):
    model = classifier()
    model[0].weight.data[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="^0 has values that are NaN"):
        select(model, IMAGES, method)


@pytest.mark.parametrize("method", ["taylor", "qr"])
def test_one_damaged_image_is_no_reason_to_remove_a_filter(method):
    images = IMAGES.clone()
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="example inputs hold NaN"):
        select(classifier(), images, method)


def test_a_layer_that_answers_with_nan_is_left_whole_for_that_reason():
    class Undefined(nn.Sequential):
        def forward(self, x):
            return self[2](self[1]((self[0](x) + 1).sqrt()).relu().nan_to_num())

    torch.manual_seed(0)
    left = structure(Undefined(Conv(3, 8, 3), Conv(8, 8, 1), Conv(8, 8, 1)), IMAGES).left_whole
    assert "NaN or infinite" in left["0"] and "1" not in left


# random passes


class Noisy(nn.Module):
    """Draws numbers in evaluation mode, as a variational autoencoder does."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.a, self.b, self.out = Conv(3, 16, 3), Conv(16, 16, 3), Conv(16, 2, 1)

    def forward(self, x):
        z = self.a(x)
        z = z + 3 * torch.randn(len(z), 1, *z.shape[2:])
        return self.out(self.b(z.relu()).relu()).mean((2, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "qr"},
        {"method": "obs"},
        {"method": "taylor"},
        {"method": "topological", "space": "functional", "search": "cover"},
        {"method": "topological", "space": "activations", "search": "cover"},
    ],
    ids=str,
)
def test_a_seed_gives_one_choice_of_a_network_that_draws_numbers(options):
    model, choices = Noisy(), []
    for state in range(4):
        torch.manual_seed(state)
        choices.append(select(model, IMAGES, **options))
        assert torch.initial_seed() == state
    assert all(choice == choices[0] for choice in choices)


# operations


class Uses(nn.Module):
    """Two convolutions around one operation."""

    def __init__(self, operation):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.fc = Conv(3, 8, 3), Conv(8, 8, 1), Conv(8, 6, 1), nn.Linear(6, 6, bias=False)
        self.operation = operation

    def forward(self, x):
        return self.fc(self.operation(self, self.c(self.b(self.a(x)).relu())).flatten(2).mean(2))


OPERATIONS = {
    "sort": lambda self, z: z.flatten(2).sort().values,
    "sort of an axis": lambda self, z: torch.sort(z, dim=3)[0],
    "stable sort": lambda self, z: torch.sort(z, stable=True, dim=-1)[0],
    "argsort": lambda self, z: z.argsort().float(),
    "largest norm": lambda self, z: z / torch.linalg.vector_norm(z, float("inf")),
    "norm of order 3": lambda self, z: z / torch.linalg.vector_norm(z, 3),
    "norm over positions": lambda self, z: z / torch.linalg.vector_norm(z, 2, dim=(2, 3), keepdim=True),
    "matrix in addmm": lambda self, z: (
        torch.addmm(z.mean((2, 3)), z.mean((2, 3)), self.fc.weight.t())[..., None, None] + z
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_odd_operation_leaves_the_rest_of_the_network_prunable(name):
    model = Uses(OPERATIONS[name]).eval()
    mixes = name in ("largest norm", "norm of order 3", "matrix in addmm")
    with pytest.warns(PruningWarning, match="c because") if mixes else contextlib.nullcontext():
        result = prune(model, IMAGES, "l1")
    assert result.filters["a"] == 8 and result.model.a.out_channels == 4
    assert len(result.kept["c"]) == (6 if mixes else 3)
    masked = copy.deepcopy(model)
    for layer, reader in {"a": masked.b, "b": masked.c, "c": masked.fc}.items():
        gone = [i for i in range(result.filters[layer]) if i not in result.kept[layer]]
        reader.weight.data[:, gone] = 0
    torch.testing.assert_close(result.model(IMAGES), masked(IMAGES), rtol=1e-4, atol=1e-5)


def test_an_operation_whose_arguments_are_not_foreseen_is_no_error_of_the_inputs(monkeypatch):
    def broken(*_):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr("topoprune.channels._Follower._within", broken)
    with pytest.warns(PruningWarning, match="c because sort in .* cannot be followed"):
        result = prune(Uses(OPERATIONS["sort"]), IMAGES, "l1")
    assert result.model.a.out_channels == 4 and len(result.kept["c"]) == 6


def test_a_depthwise_transposed_convolution_loses_its_channels():
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 4, stride=2, groups=8), Conv(8, 2, 1))
    result = prune(model, IMAGES, "l1", ratio=0.7)
    masked, gone = copy.deepcopy(model), [i for i in range(8) if i not in result.kept["0"]]
    assert len(gone) == 5 and result.model[2].groups == result.model[2].out_channels == 3
    masked[3].weight.data[:, gone] = 0
    torch.testing.assert_close(result.model(IMAGES), masked(IMAGES), rtol=1e-4, atol=1e-5)
    result.model(IMAGES).sum().backward()


class Attended(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Conv(3, 8, 3), Conv(8, 8, 3), Conv(8, 4, 3)
        self.along = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x):
        z = self.a(x)
        weight = self.along(z.mean((2, 3))[:, None]).sigmoid()
        return self.c(self.b(z * weight[:, 0, :, None, None]))


def test_filters_that_can_only_go_together_are_said_to_stay():
    with pytest.warns(PruningWarning, match="a because"):
        chosen = run_selection(Attended(), IMAGES, "l1")
    assert len(chosen.kept["a"]) == 8 and "a" in chosen.left_whole and len(chosen.kept["b"]) == 4


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = Conv(3, 8, 3), Conv(3, 8, 3), Conv(8, 8, 1), Conv(8, 2, 1)

    def forward(self, x):
        return self.d(self.c(self.a(x) + self.b(x)))


def test_a_layer_that_a_ratio_names_is_said_to_stay_for_its_partner():
    with pytest.warns(PruningWarning, match="b because it is coupled to a layer that the ratio leaves whole"):
        chosen = run_selection(Added(), IMAGES, "l1", {"b": 0.5, "c": 0.5})
    assert [len(chosen.kept[layer]) for layer in "abc"] == [8, 8, 4] and "b" in chosen.left_whole
    prune(Added(), IMAGES, "l1", ratio=0.5, steps=3)  # a step that removes nothing of a layer says nothing


# what is found late is looked for early


def test_an_impossible_target_costs_no_fine_tuning():
    calls = []
    with pytest.raises(ValueError, match="flops cannot fall"):
        prune(classifier(), IMAGES, "l1", flops=0.001, steps=4, between=lambda _, step: calls.append(step))
    assert not calls


@pytest.mark.parametrize(
    "images, message", [(IMAGES[:3], "images"), (torch.full((500, 3, 12, 12), torch.nan), "not finite")]
)
def test_images_unfit_to_refit_on_cost_no_search(images, message):
    def criterion(points):
        raise AssertionError("chosen before the images were looked at")

    with pytest.raises(ValueError, match=message):
        prune(classifier(), IMAGES, criterion, compensate=images)


def test_an_output_that_cannot_be_written_costs_no_search(tmp_path, monkeypatch):
    monkeypatch.setattr("topoprune.storage.prune", None)
    (tmp_path / "file").write_text("")
    dense, source = tmp_path / "dense.safetensors", {"architecture": "vgg16", "classes": 10, "width": 0.0625}
    topoprune.save(topoprune.build(**source), dense, source)
    with pytest.raises(FileError, match="cannot write"):
        prune_file(str(dense), tmp_path / "file" / "small.safetensors", method="random")


def test_validation_that_cannot_be_read_costs_no_epoch(tmp_path):
    model = classifier()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="labels must be class numbers"):
        train(model, [(IMAGES, LABELS)] * 2, Recipe(epochs=2), validation=[(IMAGES, F.one_hot(LABELS))])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# training


def test_a_checkpoint_without_a_name_is_of_one_network(tmp_path):
    recipe, data, path = Recipe(epochs=2, peak_rate=0.01), [(IMAGES, LABELS)] * 3, tmp_path / "c.safetensors"
    first, same = classifier(0), classifier(0)
    history = train(first, data, recipe, checkpoint=path)
    for model in (same, first):  # that of before the training, and that of after it, of which nothing is left to train
        assert train(model, data, recipe, checkpoint=path) == history
    with pytest.warns(FileWarning, match="began with other weights"):
        train(classifier(1), data, recipe, checkpoint=path)


def test_a_single_step_trains():
    model, before = classifier(), classifier()
    train(model, [(IMAGES, LABELS)], Recipe(epochs=1, peak_rate=0.05))
    assert not torch.equal(model[0].weight, before[0].weight)


class Caches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.places = Conv(3, 8, 3), nn.Linear(8, 5), None

    def forward(self, x):
        z = self.conv(x)
        if self.places is None:
            self.places = torch.linspace(0, 1, z.shape[-1]).expand(z.shape[-2:])
        return self.fc((z * self.places).mean((2, 3)))


def test_a_network_that_keeps_a_tensor_of_its_pass_trains_after_it_was_judged():
    model = Caches()
    accuracy(model, [(IMAGES, LABELS)])
    train(model, [(IMAGES, LABELS)], Recipe(epochs=1))


def test_scores_that_tie_in_bfloat16_can_be_counted_precisely():
    model = nn.Linear(1, 2, bias=False)
    model.weight.data = torch.tensor([[1.0], [1.001]])
    assert accuracy(model, [(torch.ones(4, 1), torch.ones(4, dtype=torch.long))], precise=True) == 1


def test_a_single_score_tells_no_classes_apart():
    with pytest.raises(ValueError, match="one score tells no classes apart"):
        accuracy(nn.Linear(1, 1), [(torch.ones(4, 1), torch.zeros(4, dtype=torch.long))])


def test_inputs_alone_recalibrate_as_a_loader_gives_them():
    inputs = torch.tensor([[1.0], [3.0]])
    norm = recalibrate(nn.BatchNorm1d(1), DataLoader(TensorDataset(inputs), batch_size=2))
    assert norm.running_mean.item() == 2


# many inputs


def test_taylor_sums_the_gradients_of_all_batches():
    """300 inputs go in three batches; the scores are those of the gradient of the mean loss."""
    model, images = classifier(), torch.randn(300, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(300) % 5
    found = topoprune.couplings(model, images)
    scores = topoprune.criteria.taylor(model, images, found, labels=labels)
    F.cross_entropy(model(images), labels).backward()
    products = model[0].weight * model[0].weight.grad, model[2].weight * model[2].weight.grad
    expected = (products[0].flatten(1).sum(1).abs() + products[1].sum((0, 2, 3)).abs()) / 2
    torch.testing.assert_close(scores[0], expected.detach(), rtol=1e-4, atol=1e-7)


# files


class Optioned(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = Conv(3, 8, 3), Conv(8, 2, 3)

    def forward(self, x, scale=1.0, flag=None, mode="nearest", index=None):
        z = self.a(x)
        if index is not None:
            if index.min() < 1:
                raise ValueError("Length of all samples has to be greater than 0")
            z = z / index[:, None, None, None]
        return self.b(F.interpolate(z, scale_factor=2, mode=mode) * scale)


@pytest.mark.parametrize(
    "inputs",
    [
        (IMAGES, 2.0),
        {"x": IMAGES, "flag": None},
        {"x": IMAGES, "mode": "bilinear"},
        (IMAGES, torch.tensor(2.0)),
        {"x": IMAGES, "index": torch.tensor([7, 1, 1, 8, 2, 3, 5, 4])},
    ],
    ids=["number", "None", "text", "scalar", "integers"],
)
def test_what_prune_takes_is_saved_and_loaded(inputs, tmp_path):
    result = prune(Optioned(), inputs, "l1")
    topoprune.save(result.model, tmp_path / "small.safetensors", kept=result.kept, example_inputs=inputs)
    loaded = topoprune.load(tmp_path / "small.safetensors", model=Optioned())
    assert torch.equal(loaded(IMAGES), result.model(IMAGES))


@dataclass
class Holder:
    x: torch.Tensor


def test_inputs_that_no_file_can_describe_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="example_inputs hold a Holder"):
        topoprune.save(classifier(), tmp_path / "x.safetensors", kept={"0": [1]}, example_inputs=Holder(IMAGES))
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (90, 40)])
@pytest.mark.parametrize("shape", [[3, 16, 48], [3, 48, 16], [3, 32, 32]])
def test_images_cover_any_shape(size, shape, tmp_path):
    from topoprune.storage import _images

    Image.new("RGB", size, "white").save(tmp_path / "white.png")
    images = _images(tmp_path, shape, 4)
    assert list(images.shape) == [1, *shape] and all(len(channel.unique()) == 1 for channel in images[0])


@pytest.mark.parametrize("mode, value", [("I;16", 30_000), ("I", 30_000), ("F", 0.5)])
@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 8, 8]])
def test_images_of_more_than_eight_bits_are_refused(mode, value, shape, tmp_path):
    """Pillow would clip them to white."""
    from topoprune.storage import _images

    Image.new(mode, (8, 8), value).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match="deep.tiff has more than 8 bits a channel"):
        _images(tmp_path, shape, 4)


def test_an_image_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    from topoprune.storage import _images

    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.pdf").write_text("Pillow writes this format, and does not read it")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "whole.png")
    assert len(_images(tmp_path, [3, 8, 8], 4)) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="could not read .*whole.png .*bomb"):
        _images(tmp_path, [3, 8, 8], 4)
    monkeypatch.undo()
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="could not read .*cut.png .*: store it again, or leave it out"):
        _images(tmp_path, [3, 8, 8], 4)


def test_a_dry_run_needs_no_place_to_write_and_makes_none(tmp_path):
    dense, source = tmp_path / "dense.safetensors", {"architecture": "vgg16", "classes": 10, "width": 0.0625}
    topoprune.save(topoprune.build(**source), dense, source)
    result, _ = prune_file(str(dense), tmp_path / "new" / "small.safetensors", method="l1", dry_run=True)
    assert result.model is None and [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]
    with pytest.raises(ValueError, match="ignore"):
        prune_file(str(dense), tmp_path / "new" / "small.safetensors", method="l1", ignore="nothing")
    assert not (tmp_path / "new").exists()


def test_kept_filters_are_saved_as_arrays_and_tensors_too(tmp_path):
    model, path = classifier(), tmp_path / "small.safetensors"
    kept = {layer: torch.tensor(chosen) for layer, chosen in select(model, IMAGES, "l1").items()}
    kept["0"] = kept["0"].numpy()
    topoprune.save(remove(model, IMAGES, kept), path, kept=kept, example_inputs=IMAGES)
    assert topoprune.load(path, classifier())[0].out_channels == 4


@pytest.mark.parametrize("layout", ["network", "inputs", "both"])
def test_the_layout_in_memory_decides_nothing(layout):
    """Where maps have several pixels, pooling to one is computed by a view in channels_last alone."""
    model, inputs = classifier(), IMAGES
    wanted = run_selection(model, inputs, "l1", 0.5)
    assert len(wanted.kept["4"]) == 2
    if layout != "inputs":
        model = model.to(memory_format=torch.channels_last)
    if layout != "network":
        inputs = inputs.to(memory_format=torch.channels_last)
    chosen = run_selection(model, inputs, "l1", 0.5)
    assert chosen.kept == wanted.kept and chosen.left_whole == wanted.left_whole
    small = remove(model, inputs, chosen.kept)
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last) == (layout != "inputs")


def test_raw_bytes_are_no_images(tmp_path):
    dense, source = tmp_path / "dense.safetensors", {"architecture": "vgg16", "classes": 10, "width": 0.0625}
    topoprune.save(topoprune.build(**source), dense, source)
    save_file({"images": torch.zeros(8, 3, 32, 32, dtype=torch.uint8)}, tmp_path / "raw.safetensors")
    with pytest.raises(ValueError, match="float32"):
        prune_file(str(dense), tmp_path / "s.safetensors", method="qr", images=tmp_path / "raw.safetensors")


# arguments


@dataclass
class Criterion:
    """Compares by value, so that it has no hash."""

    power: int = 2

    def __call__(self, points):
        return (abs(points) ** self.power).sum(1)


def test_a_criterion_without_a_hash_serves():
    assert select(classifier(), IMAGES, Criterion(1)) == select(classifier(), IMAGES, "l1")
    assert prune(classifier(), IMAGES, Criterion(1), steps=2).model[0].out_channels == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "topological", "pointed": "no"}, "pointed must be True or False"),
        ({"method": "topological", "metric": [1]}, "metric must be one of"),
        ({"method": "topological", "search": [1]}, "unknown search"),
        ({"method": "topological", "space": [1]}, "space must be a name"),
        ({"method": "random", "seed": -1}, "seed must be at least 0"),
        ({"method": "random", "seed": None}, "seed must be an integer"),
        ({"method": "l1", "ignore": 5}, "ignore must be names, modules or types of modules, got 5"),
        ({"method": "l1", "ignore": ["answer", 5]}, "ignore must be names, modules or types of modules, got"),
        ({"method": "taylor", "labels": [1, 2]}, "one for each input"),
        ({"method": "taylor", "labels": torch.zeros(8)}, "class numbers"),
        ({"method": "taylor", "labels": 3}, "one for each input"),
        ({"method": "taylor", "labels": "abc"}, "labels must be class numbers, one for each input, got 'abc'"),
        ({"method": "taylor", "labels": {1: 2}}, "labels must be class numbers, one for each input, got {1: 2}"),
        (
            {"method": "taylor", "labels": [True] * 8},
            "labels must be class numbers, one for each input, got torch.bool",
        ),
        ({"method": "taylor", "labels": [-100] * 8}, "gives every filter the score 0"),
        ({"method": "taylor", "labels": torch.arange(8) + 92}, "labels must lie in 0 .. "),
        ({"method": "taylor", "labels": [0] * 7 + [-1]}, "labels must lie in 0 .. .*got -1"),
    ],
    ids=str,
)
def test_an_argument_of_the_wrong_kind_is_named(arguments, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    with pytest.raises(ValueError, match=message):
        select(classifier(), IMAGES, **arguments)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_taylor_names_an_answer_that_is_no_tensor(kind):
    class Answering(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return kind([("scores", self.inner(x))]) if kind is dict else kind([self.inner(x)])

    with pytest.raises(ValueError, match=rf"needs class scores of shape \(inputs, classes\), got {kind.__name__}: use"):
        select(Answering(), IMAGES, "taylor")


@pytest.mark.parametrize("name", ["between", "schedule"])
def test_what_prune_calls_must_be_a_function(name):
    with pytest.raises(ValueError, match=f"{name} must be a function, got 5"):
        topoprune.prune(classifier(), IMAGES, "l1", 0.5, steps=2, **{name: 5})


def test_labels_of_any_integer_type_serve():
    assert select(classifier(), IMAGES, "taylor", labels=LABELS.int()) == select(
        classifier(), IMAGES, "taylor", labels=LABELS
    )


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="empty batch"):
        prune(classifier(), IMAGES[:0], "l1")


def test_old_files_that_hold_shapes_alone_load(tmp_path):
    """As written before integers were stored by value."""
    from topoprune.storage import _rebuild_inputs

    made = _rebuild_inputs(json.loads('[{"shape": [2, 3], "type": "float32"}, {"shape": [2], "type": "int64"}]'))
    assert made[0].shape == (2, 3) and made[1].tolist() == [0, 0]
    assert remove(classifier(), IMAGES, {"0": [0, 1]})[0].out_channels == 2


# outputs, hooks and ties that a second look found


@dataclass(slots=True)
class Slotted:
    logits: torch.Tensor


class Answering(nn.Module):
    """Its answer in an object."""

    def __init__(self, answer):
        super().__init__()
        self.a, self.b, self.answer = Conv(3, 8, 3), Conv(8, 10, 3), answer

    def forward(self, x):
        return self.answer(self.b(self.a(x).relu()).mean((2, 3)))


@pytest.mark.parametrize(
    "answer",
    [Slotted, lambda y: deque([y]), lambda y: frozenset([y]), lambda y: MappingProxyType({"y": y})],
    ids=["slots", "deque", "frozenset", "mapping"],
)
def test_class_scores_stay_whole_in_any_object(answer):
    result = prune(Answering(answer), IMAGES, "l1")
    assert (result.model.a.out_channels, result.model.b.out_channels) == (4, 10)


@pytest.mark.parametrize("answer", [lambda y: y.tolist(), lambda y: y.numpy(), iter], ids=["list", "numpy", "iterator"])
def test_an_answer_without_a_tensor_is_refused(answer):
    with pytest.raises(ValueError, match="found no tensor in what Answering returns"):
        prune(Answering(answer), IMAGES, "l1")


@pytest.mark.parametrize("change", [lambda y: y + 1, lambda y: 0.1 * y])
def test_a_refit_before_a_hook_that_changes_the_outputs_helps(change):
    torch.manual_seed(0)
    model = nn.Sequential(Conv(3, 8, 3), nn.ReLU(), Conv(8, 4, 3)).eval()
    images = torch.rand(300, 3, 12, 12)
    model[2].register_forward_hook(lambda _module, _inputs, outputs: change(outputs))
    kept = {"0": [0, 1, 2, 3, 4]}
    plain, refitted = remove(model, images[:2], kept), remove(model, images[:2], kept, compensate=images)
    error = [(small(images) - model(images)).square().mean() for small in (refitted, plain)]
    assert error[0] < error[1]


class Gated(nn.Module):
    """Channel 1 gates the others, and no layer has a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Conv(3, 16, 3, bias=False), Conv(16, 8, 3, bias=False), Conv(8, 4, 1, bias=False)

    def forward(self, x):
        z = self.a(x)
        return self.c(self.b(z * z[:, 1:2].sigmoid()).relu()).mean((2, 3))


def test_zeros_as_example_inputs_verify_as_noise_does():
    torch.manual_seed(0)
    with pytest.warns(PruningWarning, match="left whole: a because the answers of b change"):
        kept = select(Gated(), torch.zeros(1, 3, 12, 12), "l1")
    assert len(kept["a"]) == 16 and len(kept["b"]) == 4


def test_flops_of_a_network_with_an_expanded_parameter():
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.out = Conv(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x):
            token = self.norm(self.token.expand(len(x), -1, -1))[:, 0]
            return self.out(self.a(x).relu().mean((2, 3)) + token)

    model = WithToken()
    assert topoprune.flops(model, IMAGES) == 27 * 8 * 100 + 32
    assert all(parameter.requires_grad for parameter in model.parameters())


class TiedAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.e1, self.e2 = Conv(3, 8, 3), Conv(8, 16, 3)
        self.d2, self.d1 = nn.ConvTranspose2d(16, 8, 3), nn.ConvTranspose2d(8, 3, 3)
        self.d2.weight, self.d1.weight = self.e2.weight, self.e1.weight

    def forward(self, x):
        return self.d1(self.d2(self.e2(self.e1(x).relu()).relu()).relu())


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_a_tied_autoencoder_is_pruned_where_its_weights_write_filters(ratio):
    found = structure(TiedAutoencoder(), IMAGES)
    assert {coupling.layers: coupling.choices for coupling in found.couplings} == {("e2",): 16}
    with pytest.warns(PruningWarning, match="left whole: e1 because its channels meet a tensor of fixed size"):
        result = prune(TiedAutoencoder(), IMAGES, "l1", ratio=ratio)
    assert result.model(IMAGES).shape == IMAGES.shape
    assert result.model.d2.weight is result.model.e2.weight


def test_a_buffer_that_reads_channels_is_cut():
    class Prototypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Conv(3, 8, 3), Conv(8, 16, 3)
            self.register_buffer("p", torch.randn(5, 16))

        def forward(self, x):
            return F.linear(self.b(self.a(x).relu()).mean((2, 3)), self.p)

    for method in ("l1", "qr"):
        result = prune(Prototypes(), torch.randn(64, 3, 12, 12), method)
        assert result.model.p.shape == (5, 8) and result.model(IMAGES).shape == (8, 5)


class Paired(nn.Module):
    """A choice is two filters of the first layer and one of the second."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Conv(3, 32, 3), Conv(3, 16, 3), Conv(16, 4, 1)

    def forward(self, x):
        u, v = self.a(x).chunk(2, 1)
        return self.c(u * v.sigmoid() + self.b(x)).mean((2, 3))


def test_every_layer_of_a_coupling_keeps_multiples_and_the_minimum():
    rounded = select(Paired(), IMAGES, "l1", 0.3, round_to=8)
    assert (len(rounded["a"]), len(rounded["b"])) == (32, 16)
    few = select(Paired(), IMAGES, "l1", 0.9, minimum=8)
    assert (len(few["a"]), len(few["b"])) == (16, 8)


def test_a_ratio_of_a_layer_whose_type_is_not_pruned_is_told():
    model = nn.Sequential(Conv(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 16), nn.ReLU(), nn.Linear(16, 5))
    with pytest.warns(PruningWarning, match="left whole: 3 because types does not name its type"):
        select(model, IMAGES, "l1", {"3": 0.5})
    assert len(select(model, IMAGES, "l1", {"3": 0.5}, types=nn.Linear)["3"]) == 8


@pytest.mark.parametrize(
    "option", [{"distance": "bottleneck"}, {"dimensions": 0}, {"engine": "reference"}, {"population": 4}], ids=str
)
@pytest.mark.parametrize("search", ["cover", "merge"])
def test_a_cover_refuses_options_of_diagrams_and_of_the_genetic_search(search, option):
    with pytest.raises(ValueError, match=f"search '{search}' has no {next(iter(option))}"):
        select(classifier(), IMAGES, search=search, **option)


def test_each_refused_checkpoint_is_kept(tmp_path):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    for identity in "abc":
        with contextlib.nullcontext() if identity == "a" else pytest.warns(FileWarning, match="set aside"):
            train(classifier(), loader, Recipe(epochs=1), checkpoint=tmp_path / "t.ckpt", identity=identity)
    assert sorted(file.name for file in tmp_path.glob("t.ckpt*")) == ["t.ckpt", "t.ckpt.refused", "t.ckpt.refused-2"]


# what a trace must not miss


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 8)], ids=["rows", "sequences"])
def test_a_first_linear_layer_without_a_bias_is_pruned(shape):
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    result = prune(model, torch.randn(shape), "l1", types=nn.Linear)
    assert result.model[0].out_features == 8 and set(result.left_whole) == {"2"}


class Attending(nn.Module):
    """The layer after the attention has no bias, and reads what the trace cannot follow."""

    def __init__(self):
        super().__init__()
        sizes = {"q": (8, 8), "o": (8, 12), "up": (12, 16), "down": (16, 5)}
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs, bias=False))

    def forward(self, x):
        return self.down(self.up(self.o(F.scaled_dot_product_attention(self.q(x), x, x))).relu())


def test_a_linear_layer_without_a_bias_after_attention_is_pruned():
    with pytest.warns(PruningWarning, match="left whole: q because _scaled_dot_product"):
        result = prune(Attending(), torch.randn(2, 6, 8), "l1", types=nn.Linear)
    assert (result.model.o.out_features, result.model.up.out_features) == (6, 8)
    assert result.left_whole.keys() == {"q", "down"} and "did not run" not in "".join(result.left_whole.values())


def test_a_transposed_weight_that_is_used_as_it_is_stays_whole():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16, bias=False), nn.Linear(16, 4)

        def forward(self, x):
            return self.b(self.a(x).relu()) + self.a.weight.t().sum()

    with pytest.raises(ValueError, match="a because .* uses its weight as it is"):
        prune(Scored(), torch.randn(4, 8), "l1", types=nn.Linear)


def test_the_reason_of_a_tied_layer_is_that_of_its_weight():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.words.weight

        def forward(self, words):
            return self.head(self.down(self.up(self.words(words)).relu()))

    found = structure(Language(), torch.randint(0, 20, (2, 6)), (nn.Linear,))
    assert [coupling.layers for coupling in found.couplings] == [("up",)]
    assert found.left_whole["head"] == "embedding in words uses its weight as it is"


class Picks(nn.Module):
    """Gives the last channel at the positions of the largest scores, which differ by less than float32 resolves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = Conv(3, 256, 1), Conv(256, 256, 1), Conv(256, 1, 1)

    def forward(self, x):
        scores = self.c(self.b(self.a(x[:, :3]).relu()).relu()).flatten(1)
        return x[:, 3].flatten(1).gather(1, scores.topk(20).indices)


def test_rounding_that_changes_what_a_network_picks_is_no_difference():
    images = torch.cat([1 + 3e-7 * torch.randn(2, 3, 12, 12), torch.randn(2, 1, 12, 12)], 1)
    result = prune(Picks(), images, "l1")
    assert (result.model.a.out_channels, result.model.b.out_channels) == (128, 128)


def test_what_changes_in_float64_too_is_a_difference():
    class Counts(Picks):
        def forward(self, x):
            return super().forward(x) * self.a.out_channels * self.b.out_channels

    with pytest.raises(ValueError, match="nothing to prune: every layer must stay whole, a because"):
        prune(Counts(), torch.randn(2, 4, 12, 12), "l1")


class Pairs(nn.Module):
    """Compares the halves of a batch, so it takes no single input."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        first, second = x.chunk(2)
        return self.body(first) - self.body(second)


@pytest.mark.parametrize("target", [{"ratio": 0.5}, {"flops": 0.5}, {"parameters": 0.5}])
def test_a_network_that_takes_no_single_input_is_pruned(target):
    images = torch.randn(4, 3, 8, 8)
    result = prune(Pairs(), images, method="l1", **target)
    assert result.after.flops == topoprune.flops(result.model.body, images) < result.before.flops
    with pytest.raises(ValueError, match=r"does not run on example inputs of shape \(4, 2, 8, 8\)"):
        topoprune.flops(Pairs(), torch.randn(4, 2, 8, 8))
