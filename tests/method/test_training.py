"""Training learns, repeats itself bit for bit, continues where it stopped, and takes data and networks of any kind."""

import copy
import os
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from topoprune import files
from topoprune._engine.graph import captured
from topoprune.training import Recipe, accuracy, recalibrate, train

RECIPE = Recipe(epochs=3, peak_rate=0.05)
MUON = replace(RECIPE, muon_rate=0.02)
TAUGHT = replace(RECIPE, distillation=0.75, temperature=2.0)
RECIPES = pytest.mark.parametrize("recipe", [RECIPE, MUON], ids=["sgd", "muon"])
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def network(seed=0, dropout=0.1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def samples(n=48, shape=(3, 8, 10), seed=0) -> TensorDataset:
    """Images that are brighter the higher their class."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, *shape, generator=random) + labels.view(-1, *[1] * len(shape)), labels)


def loader(batch=16, **options) -> DataLoader:
    return DataLoader(samples(**options), batch, shuffle=True)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def outcome(history):
    return [(epoch.epoch, epoch.loss, epoch.validation, epoch.test) for epoch in history]


def same(a: nn.Module, b: nn.Module) -> bool:
    return files.digest(a.state_dict()) == files.digest(b.state_dict())


class PowerFailure(DataLoader):
    """Batches until the epoch in which the power fails; the batch of that epoch that is the last is `lasts`."""

    def __init__(self, epoch: int, lasts: int = 1):
        super().__init__(samples(), 16, shuffle=True)
        self.fails, self.lasts, self.epochs = epoch, lasts, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if self.epochs[-1] == self.fails and number == self.lasts:
                raise KeyboardInterrupt
            yield batch


class Unread(list):
    def __iter__(self):
        raise AssertionError("no batch is to be read")


# The recipe


@given(warmup=st.floats(0, 0.99), progress=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_the_rate_rises_and_then_falls(warmup, progress):
    recipe = Recipe(epochs=1, warmup=warmup)
    early, late = map(recipe.cycle, sorted(progress))
    assert 0 <= min(early, late) and max(early, late) <= 1
    if sorted(progress)[1] < warmup:
        assert early <= late
    elif sorted(progress)[0] >= warmup:
        assert early >= late
    assert recipe.cycle(warmup) == 1 and recipe.cycle(1.0) == pytest.approx(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": -1}, "epochs must be an integer of at least 0, got -1"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 0, got 1.5"),
        ({"epochs": 2.0}, "epochs must be an integer of at least 0, got 2.0"),
        ({"epochs": 1, "batch": 0}, "batch must be an integer of at least 1, got 0"),
        ({"epochs": 1, "batch": 1.5}, "batch must be an integer of at least 1, got 1.5"),
        ({"epochs": 1, "warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1.0"),
        ({"epochs": 1, "momentum": -1.0}, r"momentum must lie in \[0, 1\), got -1.0"),
        ({"epochs": 1, "momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"epochs": 1, "cutout": -1}, "cutout must be an integer of at least 0, got -1"),
        ({"epochs": 1, "shift": 0.5}, "shift must be an integer of at least 0, got 0.5"),
        ({"epochs": "a"}, "epochs must be an integer of at least 0, got 'a'"),
        ({"epochs": 1, "peak_rate": "a"}, "peak_rate must be a finite number of at least 0, got 'a'"),
        ({"epochs": 1, "momentum": None}, r"momentum must lie in \[0, 1\), got None"),
        ({"epochs": 1, "peak_rate": -0.1}, "peak_rate must be a finite number of at least 0, got -0.1"),
        ({"epochs": 1, "distillation": 1.1}, r"distillation must lie in \[0, 1\], got 1.1"),
        ({"epochs": 1, "label_smoothing": 3.0}, r"label_smoothing must lie in \[0, 1\], got 3.0"),
        ({"epochs": 1, "temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        *[
            ({"epochs": 1, name: value}, f"{name} must be a finite number of at least 0, got {value}")
            for name in ("peak_rate", "weight_decay", "muon_rate", "muon_decay")
            for value in (float("nan"), float("inf"), -1.0)
        ],
        *[
            ({"epochs": 1, name: float("nan")}, f"{name} must .*, got nan")
            for name in ("warmup", "momentum", "label_smoothing", "distillation", "temperature")
        ],
    ],
)
def test_a_recipe_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_a_field_that_is_added_to_the_recipe_leaves_older_checkpoints_valid(tmp_path):
    @dataclass(frozen=True)
    class Later(Recipe):
        added: float = 0.5

    old, new = RECIPE, Later(**vars(RECIPE))
    file = tmp_path / "run.safetensors"
    model = network()
    expected = train(model, loader(), old, checkpoint=file)
    continued = network()
    assert train(continued, Unread(loader()), new, checkpoint=file) == expected
    assert same(model, continued)
    with pytest.warns(files.FileWarning, match="belongs to another run"):
        train(network(), loader(), replace(new, added=0.25), checkpoint=file)


def test_checkpoints_are_named_as_those_of_the_first_version(tmp_path):
    """The caches of the study hold such checkpoints, and days of training."""
    file = tmp_path / "run.safetensors"
    train(network(), loader(), Recipe(epochs=1), seed=7, checkpoint=file, identity="run")
    assert files.read_tensors(file)[1]["identity"] == (
        "run {'epochs': 1, 'batch': 256, 'peak_rate': 0.2, 'warmup': 0.25, 'momentum': 0.9, 'weight_decay': 0.0005, "
        "'label_smoothing': 0.1, 'shift': 4, 'muon_rate': 0.0, 'muon_decay': 0.05, 'cutout': 0} seed 7"
    )


# Training


@RECIPES
def test_the_classes_are_learned(recipe):
    model = network()
    test = DataLoader(samples(seed=1), 20)
    history = train(model, loader(), replace(recipe, epochs=10), loader(), test)
    assert history[-1].loss < history[0].loss
    assert [epoch.epoch for epoch in history] == list(range(1, 11))
    assert history[-1].test == accuracy(model, test) > 0.8


def test_without_evaluation_data_there_are_no_accuracies():
    (epoch,) = train(network(), loader(), Recipe(epochs=1))
    assert epoch.loss > 0 and epoch.seconds > 0
    assert epoch.validation is None and epoch.test is None


def test_the_steps_are_those_of_the_textbook():
    """SGD with Nesterov momentum, decay of weights alone, one cycle, mean loss; here written out."""
    data, recipe = list(loader()), Recipe(epochs=2, peak_rate=0.1, warmup=0.5, label_smoothing=0.0)
    model, expected = network(dropout=0.0).double(), network(dropout=0.0).double()
    data = [(images.double(), labels) for images, labels in data]
    history = train(model, data, recipe)
    momenta, losses = {}, []
    for step, (images, labels) in enumerate(data * 2):
        rate = 0.1 * recipe.cycle(step / 6)
        loss = nn.functional.cross_entropy(expected(images), labels)
        losses.append(loss.item())
        expected.zero_grad()
        loss.backward()
        for name, parameter in expected.named_parameters():
            decayed = parameter.grad + (parameter.data * 5e-4 if parameter.ndim > 1 else 0)
            momenta[name] = decayed + 0.9 * momenta.get(name, 0)
            parameter.data -= rate * (decayed + 0.9 * momenta[name])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, dict(expected.named_parameters())[name])
    assert [epoch.loss for epoch in history] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_the_loss_of_a_teacher_is_that_of_the_paper():
    """The divergence of the softened probabilities, times T^2, beside the usual loss, here written out."""
    (images, labels), *_ = data = [(inputs.double(), labels) for inputs, labels in loader()][:1]
    model, expected, teacher = (network(seed, dropout=0.0).double() for seed in (0, 0, 1))
    history = train(model, data, replace(TAUGHT, epochs=1, warmup=0.0), teacher=teacher)
    with torch.no_grad():
        soft = (teacher.eval()(images) / 2).softmax(1)
    scores = expected(images)
    hard = nn.functional.cross_entropy(scores, labels, label_smoothing=0.1)
    divergence = (soft * (soft.log() - (scores / 2).log_softmax(1))).sum(1).mean()
    assert history[0].loss == pytest.approx((0.25 * hard + 0.75 * 4 * divergence).item(), rel=1e-5)
    (0.25 * hard + 0.75 * 4 * divergence).backward()
    for parameter, own in zip(model.parameters(), expected.parameters(), strict=True):
        decayed = own.grad + (own.data * 5e-4 if own.ndim > 1 else 0)
        torch.testing.assert_close(parameter.data, own.data - 0.05 * 1.9 * decayed, rtol=1e-4, atol=1e-6)


def test_a_teacher_is_followed_without_labels_and_left_alone():
    teacher = network()
    train(teacher, loader(), replace(RECIPE, epochs=10))
    state, before = files.digest(teacher.state_dict()), modes(teacher)
    unlabelled = [(images, torch.zeros(len(images), dtype=torch.int64)) for images, _ in loader()]
    model = network(seed=1)
    untaught = accuracy(model, loader())
    history = train(model, unlabelled, replace(TAUGHT, epochs=20, distillation=1.0), loader(), teacher=teacher)
    assert history[-1].loss < history[0].loss and history[-1].validation > max(untaught, 0.5)
    assert files.digest(teacher.state_dict()) == state and modes(teacher) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())


class Empty(nn.Sequential):
    """A network that is false."""

    def __len__(self):
        return 0


def test_a_teacher_without_a_length_runs_in_evaluation_mode_and_is_left_alone():
    teacher, plain = Empty(*network(1)).train(), network(1)
    state, before = files.digest(teacher.state_dict()), modes(teacher)
    history = train(network(), loader(), TAUGHT, teacher=teacher)
    assert files.digest(teacher.state_dict()) == state and modes(teacher) == before
    assert outcome(history) == outcome(train(network(), loader(), TAUGHT, teacher=plain))


def test_networks_that_overwrite_their_inputs_get_copies():
    def overwriting(seed, inplace):
        return nn.Sequential(nn.Threshold(0.5, 9.0, inplace), *network(seed))

    data = [*loader()]
    before = [images.clone() for images, _ in data]
    networks = {inplace: [overwriting(seed, inplace) for seed in (0, 1)] for inplace in (True, False)}
    histories = {}
    for inplace, (model, teacher) in networks.items():
        histories[inplace] = outcome(train(model, data, TAUGHT, data, teacher=teacher))
        accuracy(recalibrate(model, data), data)
        assert all(torch.equal(images, kept) for (images, _), kept in zip(data, before, strict=True))
    assert histories[True] == histories[False] and same(networks[True][0], networks[False][0])


def test_another_teacher_makes_another_run(tmp_path):
    file = tmp_path / "run.safetensors"
    expected = train(network(), loader(), TAUGHT, checkpoint=file, teacher=network(seed=1))
    assert train(network(), Unread(loader()), TAUGHT, checkpoint=file, teacher=network(seed=1)) == expected
    with pytest.warns(files.FileWarning, match="belongs to another run"):
        train(network(), loader(), TAUGHT, checkpoint=file, teacher=network(seed=2))


def test_muon_takes_the_convolutions_and_leaves_the_rest_to_sgd():
    model, fresh = network(), network()
    train(model, loader(), replace(MUON, peak_rate=0.0))
    start = dict(fresh.named_parameters())
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
    assert moved == {name for name, value in start.items() if value.ndim == 4}


def test_muon_alone_trains_a_network_of_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    history = train(model, loader(), replace(MUON, epochs=5))
    assert history[-1].loss < history[0].loss


@RECIPES
def test_one_seed_gives_one_result(recipe):
    runs = [(model := network(), outcome(train(model, loader(), recipe, loader(), seed=seed))) for seed in (1, 1, 2)]
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert same(runs[0][0], runs[1][0]) and not same(runs[0][0], runs[2][0])


def test_the_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    model, data = network(), [batch for batch in DataLoader(samples(), 16)]
    torch.manual_seed(3)
    train(model, data, RECIPE)
    assert torch.equal(torch.rand(2), expected)


def test_a_training_that_diverges_ends_with_what_it_reached(tmp_path):
    """An untrainable network is a result: it has no loss, and NaN is never right."""
    recipe, file = Recipe(epochs=2, peak_rate=1e30), tmp_path / "run.safetensors"
    history = train(network(), loader(), recipe, loader(), checkpoint=file)
    assert history[-1].loss is None
    assert history[-1].validation < 0.5
    assert train(network(), Unread(loader()), recipe, loader(), checkpoint=file) == history


# Checkpoints


@RECIPES
@pytest.mark.parametrize("lasts", [0, 2])
def test_an_interrupted_run_continues_bit_for_bit(recipe, lasts, tmp_path):
    whole = network()
    expected = outcome(train(whole, loader(), recipe, loader(), seed=5))
    file = str(tmp_path / "folder" / "run.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(network(), PowerFailure(2, lasts), recipe, loader(), seed=5, checkpoint=file, identity="run")
    continued, rest = network(seed=9), PowerFailure(99)  # all weights are replaced
    assert outcome(train(continued, rest, recipe, loader(), seed=5, checkpoint=file, identity="run")) == expected
    assert rest.epochs == [2]
    assert same(whole, continued)


def test_a_finished_run_is_not_repeated(tmp_path):
    file, model, again = tmp_path / "run.safetensors", network(), network(seed=9)
    expected = train(model, loader(), RECIPE, checkpoint=file, identity="run")
    assert train(again, Unread(loader()), RECIPE, checkpoint=file, identity="run") == expected
    assert same(model, again)


def test_a_checkpoint_notes_how_to_build_the_network(tmp_path):
    file, source = tmp_path / "run.safetensors", {"architecture": "vgg16", "classes": 3, "width": 0.5}
    train(network(), loader(), Recipe(epochs=1), checkpoint=file, source=source)
    assert files.read_tensors(file)[1]["source"] == source


@pytest.mark.parametrize(
    "change", [{"identity": "another"}, {"seed": 1}, {"recipe": replace(RECIPE, epochs=2)}, {"recipe": MUON}]
)
def test_a_checkpoint_of_another_run_is_set_aside(change, tmp_path):
    file = tmp_path / "run.safetensors"
    train(network(), loader(), RECIPE, checkpoint=file)
    with pytest.warns(files.FileWarning, match="belongs to another run.*set aside as run.safetensors.refused"):
        train(network(), loader(), **{"recipe": RECIPE, "checkpoint": file, **change})
    assert (tmp_path / "run.safetensors.refused").exists()


def tampered(path, change):
    """Change the tensors and the metadata of a checkpoint, with a right checksum."""
    tensors, metadata = files.read_tensors(path)
    change(tensors, metadata)
    files.write_tensors(path, tensors, metadata)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "truncated"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"), "altered"),
        (lambda path: tampered(path, lambda tensors, _: tensors.update({"model.9.bias": torch.zeros(7)})), "layers"),
        (lambda path: tampered(path, lambda tensors, _: tensors.pop("momentum.SGD.0")), "other layers"),
        *[
            (lambda path, value=value: tampered(path, lambda _, about: about.update(history=value)), "no history")
            for value in (None, 3, [{}], [[1]], [{"epoch": 1, "colour": 2}])
        ],
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_run_starts_over(spoil, reason, tmp_path):
    file, recipe = tmp_path / "run.safetensors", Recipe(epochs=1)
    expected = outcome(train(network(), loader(), recipe, checkpoint=file))
    spoil(file)
    with pytest.warns(files.FileWarning, match=f"{reason}.*set aside as run.safetensors.refused"):
        again = train(network(), loader(), recipe, checkpoint=file)
    assert outcome(again) == expected


def test_tied_weights_are_stored_and_continued(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).relu())

    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(20, 4), torch.arange(20) % 4), 5)
    whole, continued = Tied(), Tied()
    train(whole, data, RECIPE, checkpoint=tmp_path / "run.safetensors", identity="tied")
    train(continued, Unread(data), RECIPE, checkpoint=tmp_path / "run.safetensors", identity="tied")
    assert same(whole, continued) and continued.second.weight is continued.first.weight


# Networks and data of one's own


class Stream(IterableDataset):
    """Images without a number of images."""

    def __iter__(self):
        return iter(samples())


def batches_of(kind: str):
    data = [(images, labels) for images, labels in DataLoader(samples(), 16)]
    return {
        "list": data,
        "loader": DataLoader(samples(), 16),
        "uneven": DataLoader(samples(), 13),
        "stream": DataLoader(Stream(), 16),
        "tuples": [((images,), labels) for images, labels in data],
        "dicts": [({"input": images}, labels) for images, labels in data],
    }[kind]


@pytest.mark.parametrize("kind", ["list", "loader", "uneven", "stream", "tuples", "dicts"])
def test_any_iterable_of_batches_serves(kind):
    data, model = batches_of(kind), network(dropout=0.0)
    history = train(model, data, RECIPE, data)
    assert len(history) == 3 and history[-1].validation == accuracy(model, data)
    assert recalibrate(model, data) is model
    if kind != "uneven":
        expected = network(dropout=0.0)
        assert outcome(history) == outcome(train(expected, batches_of("list"), RECIPE, data))
        assert same(model, recalibrate(expected, batches_of("list")))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: [nn.Flatten(), nn.Linear(12, 3)], (12,)),
        (
            lambda: [nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)],
            (2, 9),
        ),
        (lambda: [nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)], (1, 28, 20)),
        (lambda: [nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)], (1, 4, 5, 6)),
    ],
    ids=["linear", "1d", "oblong", "3d"],
)
@RECIPES
def test_networks_of_any_dimension_are_trained(build, shape, recipe):
    torch.manual_seed(0)
    model, data = nn.Sequential(*build()), loader(shape=shape)
    history = train(model, data, recipe, data)
    assert history[-1].loss < history[0].loss
    assert recalibrate(model, data) is model


def test_fast_training_changes_the_layout_of_images_alone(monkeypatch):
    monkeypatch.setattr("topoprune.training.keep_memory", lambda: None)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(2), nn.Unflatten(2, (2, -1)))
    model.extend([nn.Conv2d(4, 5, (1, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)])
    expected, data = copy.deepcopy(model), loader(shape=(1, 4, 5, 6))
    fast, plain = train(model, data, RECIPE, data, fast=True), train(expected, data, RECIPE, data)
    losses = ([epoch.loss for epoch in history] for history in (fast, plain))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)  # some processors round differently in the two layouts
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-5)
    assert model[0].weight.is_contiguous()
    assert model[5].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_views_its_activations_keeps_its_layout():
    """`view` refuses channels_last activations, which only `fast` asks for."""

    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 8, 3)

        def forward(self, x):
            x = self.convolution(x)
            return self.linear(x.view(len(x), -1))

    model = Views()
    assert train(model, loader(), MUON, loader())[-1].loss is not None
    assert model.convolution.weight.is_contiguous()


def test_outputs_for_every_pixel_are_counted():
    pixels = [(torch.eye(3)[torch.tensor([[0, 1, 2, 0]])].movedim(-1, 1), torch.tensor([[0, 1, 1, 2]]))]
    assert accuracy(nn.Identity(), pixels) == 0.5


def test_frozen_parameters_and_frozen_batch_norms_stay_as_they_are():
    model = network().train()
    model[0].requires_grad_(False)
    model[1].eval()
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("0.")}
    frozen |= {name: value.clone() for name, value in model.state_dict().items() if name.startswith("1.running")}
    before = modes(model)
    train(model, loader(), MUON, loader())
    assert modes(model) == before
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())
    assert model[5].num_batches_tracked == 9  # the other BatchNorm was trained


def test_a_network_in_evaluation_mode_is_trained_and_left_in_it():
    model, expected = network().eval(), network().train()
    train(model, loader(), RECIPE)
    train(expected, loader(), RECIPE)
    assert modes(model) == [False] * len(modes(model)) and all(modes(expected))
    assert same(model, expected)


def one_hot() -> list:
    return [(images, nn.functional.one_hot(labels, 3).float()) for images, labels in DataLoader(samples(), 16)]


def test_class_probabilities_are_labels_of_the_training_data():
    model, expected = network(), network()
    history = train(model, one_hot(), RECIPE, loader())
    assert history[-1].validation == accuracy(model, loader())
    wanted = train(expected, DataLoader(samples(), 16), RECIPE)
    assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in wanted], rel=1e-2)


def sharing_storage(model):
    """Another network whose last weights lie where those of `model` do."""
    teacher = network(1)
    teacher[-1].weight = nn.Parameter(model[-1].weight.data)
    return teacher


def normed() -> nn.Module:
    """A network whose BatchNorm has met some inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(torch.randn(8, 3))
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train(network(), iter(loader()), RECIPE), "an iterator is empty after one epoch: pass a list .* Data"),
        (lambda: train(network(), (b for b in loader()), RECIPE), "an iterator is empty after one epoch"),
        (lambda: train(network(), loader(), RECIPE, iter(loader())), "an iterator is empty after one epoch"),
        (lambda: train(network(), [], RECIPE), "the data have no batches: pass a list or a DataLoader"),
        (lambda: accuracy(network(), iter([])), "the data have no batches"),
        (lambda: recalibrate(network(), []), "the data have no batches"),
        (lambda: accuracy(network(), [torch.zeros(2, 3, 8, 8)]), r"pair \(inputs, labels\), got Tensor"),
        (lambda: train(network(), [(1, 2, 3)], RECIPE), r"a batch must be a pair \(inputs, labels\), got tuple"),
        *[
            (lambda labels=labels: accuracy(nn.Identity(), [(torch.eye(3), labels)]), message)
            for labels, message in (
                (torch.eye(3), r"\(b, classes\), got shapes \(3, 3\) and \(3, 3\): pass labels.argmax\(1\) of one-hot"),
                (torch.zeros(3, 1), r"got shapes \(3, 1\) and \(3, 3\): .* labels.squeeze\(1\) of a column"),
                (torch.tensor([0]), r"got shapes \(1,\) and \(3, 3\)"),
                (torch.tensor(0), r"got shapes \(\) and \(3, 3\)"),
                (torch.zeros(1, 3), r"got shapes \(1, 3\) and \(3, 3\)"),
            )
        ],
        *[
            (lambda measure=measure, labels=labels: measure([(torch.eye(3), labels)]), message)
            for measure in (
                lambda data: accuracy(nn.Identity(), data),
                lambda data: train(nn.Linear(3, 3), data, RECIPE),
            )
            for labels, message in (
                (torch.zeros(3), r"labels must be class numbers, got torch.float32: pass labels.long\(\)"),
                (torch.zeros(3, 1), r"got shapes \(3, 1\) and \(3, 3\): .* labels.squeeze\(1\) of a column"),
                (torch.eye(3).long(), r"got shapes \(3, 3\) and \(3, 3\): pass labels.argmax\(1\) of one-hot"),
                (torch.tensor([0]), r"got shapes \(1,\) and \(3, 3\)"),
                (torch.arange(3).numpy(), r"labels must be a tensor, got ndarray: pass torch.as_tensor\(labels\)"),
                (None, "labels must be a tensor, got NoneType"),
            )
        ],
        *[
            (lambda label=label: accuracy(nn.Identity(), [(torch.eye(3), torch.tensor([0, label, 1]))]), message)
            for label, message in ((3, r"labels must lie in 0 \.\. 2, .*got 3"), (-1, r"labels must lie in .*got -1"))
        ],
        (lambda: accuracy(nn.Identity(), [(torch.eye(3), torch.full((3,), -100))]), "the data have no labels"),
        *[
            (lambda soft=soft: train(nn.Linear(3, 3), [(torch.eye(3), soft)], RECIPE), "probabilities of 3 classes")
            for soft in (torch.eye(3) * 5, torch.eye(3) - 0.1, torch.randn(3, 3))
        ],
        (lambda: recalibrate(normed(), None), "data must be batches, got NoneType"),
        *[
            (lambda label=label: train(nn.Linear(3, 3), [(torch.eye(3), torch.tensor([0, label, 1]))], RECIPE), message)
            for label, message in ((3, r"labels must lie in 0 \.\. 2, .*got 3"), (-1, r"labels must lie in .*got -1"))
        ],
        (
            lambda: train(nn.Linear(3, 1), [(torch.eye(3), torch.zeros(3, 1))], RECIPE),
            "one score tells no classes apart",
        ),
        (
            lambda: train(network(), None, RECIPE),
            "data must be batches, got NoneType: pass a list of batches or a Data",
        ),
        (lambda: train(network(), loader(), RECIPE, 5), "data must be batches, got int"),
        (lambda: train(network(), loader(), {"epochs": 1}), r"recipe must be a Recipe, got dict: pass Recipe\(epochs="),
        (lambda: train(network(), loader(), RECIPE, seed=1.5), "seed must be an integer, got 1.5"),
        (lambda: train(network(), loader(), RECIPE, seed=-1), r"seed must lie in \[0, 17592186044415\], got -1"),
        (lambda: train(network(), loader(), RECIPE, seed=2**44), "seed must lie in .*, got 17592186044416"),
        (
            lambda: train(normed(), [(torch.eye(3)[:1], torch.tensor([0]))], RECIPE),
            "a BatchNorm needs .* drop_last=True",
        ),
        (lambda: recalibrate(normed(), torch.eye(3)[:1]), "a BatchNorm needs batches of two inputs or more"),
        (lambda: recalibrate(normed(), torch.eye(3), 0), "batches must be at least 1, got 0"),
        (lambda: recalibrate(normed(), torch.eye(3), -1), "batches must be at least 1, got -1"),
        (lambda: recalibrate(normed(), torch.eye(3), 1.5), "batches must be an integer, got 1.5"),
        (lambda: accuracy(nn.Identity(), [(torch.zeros(4), torch.zeros(4))]), r"got shapes \(4,\) and \(4,\)"),
        (lambda: accuracy(nn.Identity(), [(torch.zeros(0, 3), torch.zeros(0))]), "the data have no labels"),
        (lambda: train(network(), loader(), RECIPE, one_hot()), "labels must be class numbers"),
        (lambda: train(network().requires_grad_(False), loader(), RECIPE), "nothing to train: no parameter"),
        (lambda: train(network(), loader(), TAUGHT), "a recipe with distillation needs a teacher"),
        (
            lambda: train(network(), loader(), RECIPE, teacher=network()),
            "the teacher would not be used: set distillation",
        ),
        (
            lambda: train(*[same := network(), loader(), TAUGHT], teacher=nn.Sequential(same)),
            "the teacher shares weights",
        ),
        (
            lambda: train(*[model := network(), loader(), TAUGHT], teacher=sharing_storage(model)),
            "the teacher shares weights",
        ),
        (
            lambda: train(network(), loader(), TAUGHT, teacher=network().double()),
            r"has weights of type float64 and the network of float32: convert it, teacher.to\(torch.float32\)",
        ),
        (
            lambda: train(network(), loader(), TAUGHT, teacher=network().to("meta")),
            "the teacher is on meta and the net",
        ),
        (
            lambda: train(network(), loader(), TAUGHT, teacher=network()[:-1]),
            r"the teacher answers with scores of shape \(16, 8\), the network with \(16, 3\): both must know the same",
        ),
    ],
)
def test_data_and_networks_that_cannot_be_used_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16])
def test_labels_of_any_integer_type_are_learned(dtype):
    data = [*loader()]
    model, expected = network(dropout=0.0), network(dropout=0.0)
    history = train(model, [(images, labels.to(dtype)) for images, labels in data], RECIPE, data)
    assert outcome(history) == outcome(train(expected, data, RECIPE, data)) and same(model, expected)
    assert accuracy(model, [(images, labels.to(dtype)) for images, labels in data]) == history[-1].validation


def test_labels_of_pixels_are_learned_and_some_may_be_left_out():
    torch.manual_seed(0)
    images, pixels = torch.randn(8, 2, 4, 4), nn.Conv2d(2, 3, 1)
    labels = images.argmax(1)
    labels[:, 0] = -100  # PyTorch's mark
    history = train(pixels, [(images, labels.to(torch.int32))], Recipe(epochs=20))
    assert history[-1].loss < history[0].loss


@pytest.mark.parametrize("fast", [False, True])
def test_labels_that_are_not_used_may_be_anything(fast, monkeypatch):
    monkeypatch.setattr("topoprune.training.keep_memory", lambda: None)
    data, follow = [*loader()], replace(TAUGHT, distillation=1.0)
    expected = outcome(train(network(), data, follow, teacher=network(1), fast=fast))
    for labels in (None, "none", torch.tensor(7.0)):
        unlabelled = [(images, labels) for images, _ in data]
        assert outcome(train(network(), unlabelled, follow, teacher=network(1), fast=fast)) == expected


def test_a_teacher_that_is_a_function_is_refused():
    with pytest.raises(ValueError, match=r"teacher must be an nn\.Module, got function: wrap it in a module"):
        train(network(), loader(), TAUGHT, teacher=lambda x: x)


def test_a_network_that_answers_with_more_than_scores_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return {"scores": x, "features": x}

    with pytest.raises(ValueError, match="must answer with a tensor of class scores, got dict"):
        accuracy(Two(), loader())


# Evaluation and recalibration


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_evaluation_and_recalibration_leave_every_mode_as_it_was(root, fails):
    model = network().train(root)
    model[1].train(not root)
    before, state = modes(model), files.digest(model.state_dict())
    data = [*loader(), "no batch"] if fails else loader()
    for call in (accuracy, lambda *both: recalibrate(*both, batches=9)):
        if fails:
            with pytest.raises(ValueError, match="got str"):
                call(model, data)
            assert files.digest(model.state_dict()) == state
        else:
            call(model, data)
        assert modes(model) == before
        assert model[1].momentum == model[5].momentum == 0.1


def test_an_exception_in_training_restores_every_mode():
    model = network().eval()
    model[1].train()
    before = modes(model)
    with pytest.raises(KeyboardInterrupt):
        train(model, PowerFailure(1), RECIPE)
    assert modes(model) == before


def test_recalibration_averages_the_statistics_of_the_batches_and_changes_nothing_else():
    model, data = network(dropout=0.5), list(loader(24))  # without its dropout
    before = {name: value.clone() for name, value in model.named_parameters()}
    outputs = [model[0](images).detach() for images, _ in data]
    recalibrate(model, data)
    means, variances = zip(*((x.mean((0, 2, 3)), x.var((0, 2, 3))) for x in outputs), strict=True)
    rough = {"rtol": 2e-2, "atol": 2e-2}  # bfloat16
    torch.testing.assert_close(model[1].running_mean, sum(means) / 2, **rough)
    torch.testing.assert_close(model[1].running_var, sum(variances) / 2, **rough)
    hidden = [
        model[4](model[2](nn.functional.batch_norm(x, None, None, *model[1].parameters(), True))) for x in outputs
    ]
    torch.testing.assert_close(model[5].running_mean, sum(x.mean((0, 2, 3)) for x in hidden) / 2, **rough)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_recalibration_reads_as_many_batches_as_asked_for():
    model = network()
    recalibrate(model, loader(4), batches=5)
    assert model[1].num_batches_tracked == 5
    recalibrate(model, loader(4), batches=50)
    assert model[1].num_batches_tracked == 12


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (torch.full((4, 3), float("nan")), "a BatchNorm reads NaN or infinity: the inputs or weights are damaged"),
        (torch.full((4, 3), float("inf")), "a BatchNorm reads NaN or infinity"),
        (torch.empty(0, 3), "a batch is empty"),
        (torch.ones(1, 3), "a BatchNorm needs batches of two inputs or more"),
    ],
)
@pytest.mark.parametrize("before", [[], [torch.eye(3)]])
def test_batches_without_sound_statistics_leave_the_network_as_it_was(spoilt, message, before):
    model = normed()
    state = files.digest(model.state_dict())
    with pytest.raises(ValueError, match=message):
        recalibrate(model, [*before, spoilt])
    assert files.digest(model.state_dict()) == state and model[1].momentum == 0.1


def test_recalibration_needs_no_labels():
    data = list(loader())
    expected = recalibrate(network(), data)
    assert same(expected, recalibrate(network(), [images for images, _ in data]))
    one = data[0][0]
    assert same(recalibrate(network(), [one]), recalibrate(network(), one))


def test_a_frozen_batch_norm_is_recalibrated_too():
    """It holds the statistics of the dense network, which the pruned one does not have."""
    model, expected = network().train(), network().train()
    data = list(loader())
    model[1].eval()
    recalibrate(model, data)
    assert same(model, recalibrate(expected, data)) and not model[1].training


def test_batch_norms_without_statistics_or_outside_the_forward_pass_stay_as_they_are():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)
            nn.init.constant_(self.unused.running_mean, 5.0)

        def forward(self, x):
            return self.used(x).mean((2, 3))

    model = Branches()
    before = files.digest(model.state_dict())
    recalibrate(model, loader())
    assert files.digest(model.state_dict()) == before
    assert model.used.running_mean is None


def test_accuracy_is_the_share_of_right_labels():
    guesses = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    batches = [(guesses[:3], torch.tensor([0, 1, 1])), (guesses[3:], torch.tensor([0]))]
    assert accuracy(nn.Identity(), batches) == 0.75


def test_scores_that_are_nan_are_never_right():
    scores, labels = torch.eye(3), torch.tensor([0, 1, 2])
    scores[0, 0] = scores[1, 2] = float("nan")
    assert accuracy(nn.Identity(), [(scores, labels)]) == pytest.approx(1 / 3)
    assert accuracy(nn.Identity(), [(scores * float("nan"), labels * 0)]) == 0


# CUDA


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Waiting(nn.Module):
    """A network that asks the device for a number in every step."""

    def __init__(self):
        super().__init__()
        self.inner = network(dropout=0.0)

    def forward(self, images):
        return self.inner(images) * float(images.mean() < 1e9)


@CUDA
@RECIPES
def test_on_cuda_a_captured_step_trains_the_network_of_single_launches(recipe, deterministic):
    launched, graph = (network(dropout=0.0).cuda().to(memory_format=torch.channels_last) for _ in range(2))
    expected = outcome(train(launched, loader(), recipe, loader()))
    assert outcome(train(graph, loader(), recipe, loader(), fast=True)) == expected
    assert same(launched, graph)
    assert all(parameter.grad is None for parameter in graph.parameters())  # the memory of the graph is free


@CUDA
@pytest.mark.parametrize("fast", [False, True])
def test_on_cuda_wrong_labels_are_refused_and_unused_ones_may_be_anything(fast):
    images = torch.randn(6, 3, 8, 10)
    for labels in (torch.full((6,), 3), torch.ones(6), [0] * 6):
        with pytest.raises(ValueError, match="labels must"):
            train(network().cuda(), [(images, labels)], RECIPE, fast=fast)
    follow = replace(TAUGHT, distillation=1.0)
    assert train(network().cuda(), [(images, None)], follow, teacher=network(1).cuda(), fast=fast)[-1].loss > 0


@CUDA
def test_on_cuda_a_captured_step_follows_the_teacher(deterministic):
    launched, graph = (network(dropout=0.0).cuda().to(memory_format=torch.channels_last) for _ in range(2))
    teacher = network(seed=1).cuda()
    expected = outcome(train(launched, loader(), TAUGHT, teacher=teacher))
    assert outcome(train(graph, loader(), TAUGHT, teacher=teacher, fast=True)) == expected
    assert same(launched, graph)


@CUDA
def test_on_cuda_a_step_that_cannot_be_captured_is_launched(deterministic):
    waiting, usual = Waiting().cuda(), network(dropout=0.0).cuda()
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        found = outcome(train(waiting, loader(), RECIPE, fast=True))
    assert found == outcome(train(usual, loader(), RECIPE, fast=True))
    assert same(waiting.inner, usual)


@pytest.mark.parametrize("inputs", [(torch.ones(1),), [torch.ones(1)], {"images": torch.ones(1)}])
def test_a_step_of_several_arguments_is_not_captured(inputs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    kind = type(inputs).__name__
    with pytest.warns(UserWarning, match=f"without a CUDA graph, .*: its inputs are a {kind}, not one tensor"):
        assert captured(one_hot, network(), inputs, torch.ones(1)) is one_hot


@CUDA
@pytest.mark.parametrize("kind", ["tuples", "dicts"])
def test_on_cuda_a_network_of_several_arguments_is_trained(kind, deterministic):
    model, expected = network(dropout=0.0).cuda(), network(dropout=0.0).cuda().to(memory_format=torch.channels_last)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        found = outcome(train(model, batches_of(kind), RECIPE, fast=True))
    assert found == outcome(train(expected, batches_of("list"), RECIPE)) and same(model, expected)


@CUDA
def test_on_cuda_the_capture_itself_changes_no_weight_and_no_statistic():
    model = network(dropout=0.0).cuda().train()
    state = files.digest(model.state_dict())
    images, labels = (x.cuda() for x in next(iter(loader())))

    def step(inputs, labels):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    replay = captured(step, model, images, labels)
    assert files.digest(model.state_dict()) == state
    torch.testing.assert_close(replay(images, labels), step(images, labels))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_another_cuda_device_than_the_current_one_the_same_network_is_trained(deterministic):
    first, second = network(dropout=0.0).to("cuda:0"), network(dropout=0.0).to("cuda:1")
    assert outcome(train(first, loader(), RECIPE, fast=True)) == outcome(train(second, loader(), RECIPE, fast=True))


def test_a_checkpoint_that_cannot_be_written_costs_no_epoch(tmp_path):
    (tmp_path / "file").write_text("")
    read = []

    class Data(list):
        def __iter__(self):
            read.append(1)
            return super().__iter__()

    data = Data([(torch.randn(8, 4), torch.arange(8) % 2)])
    with pytest.raises(files.FileError, match="cannot write"):
        train(nn.Linear(4, 2), data, Recipe(epochs=3), checkpoint=tmp_path / "file" / "checkpoint")
    assert not read


def test_what_has_no_label_counts_neither_way():
    data = [(torch.eye(4), torch.tensor([0, 1, -100, 0])), (torch.eye(4), torch.full((4,), -100))]
    assert accuracy(nn.Identity(), data) == pytest.approx(2 / 3)


def test_one_pair_is_one_batch_of_recalibration():
    images, labels = torch.randn(6, 3, 4, 4), torch.arange(6) % 2
    pair, alone = (recalibrate(nn.BatchNorm2d(3), data).running_mean for data in ([images, labels], images))
    assert torch.equal(pair, alone)
