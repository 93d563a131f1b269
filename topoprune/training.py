"""Train a network, measure its accuracy, and re-estimate its BatchNorm statistics.

Data are batches of (inputs, labels), as a `DataLoader` gives them. Each epoch seeds PyTorch's global generator by seed
and epoch. If all random numbers come from it, a continued run repeats the uninterrupted one bit for bit, and networks
trained with one seed see the same data.
"""

import copy
import time
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from math import cos, inf, isfinite, pi
from numbers import Real
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from topoprune import files
from topoprune._engine.graph import Step, captured
from topoprune._engine.memory import keep_memory
from topoprune._engine.muon import Muon
from topoprune._engine.precision import autocast
from topoprune.genetic import check_number
from topoprune.losses import (
    UNLABELLED,
    check_classes,
    check_teacher,
    checked_labels,
    loss_of_labels,
    loss_of_teacher,
)
from topoprune.passes import batch_size, call, copied_inputs, device_of, evaluating
from topoprune.unlabelled import is_pair

CHECKPOINT_SETTINGS = (
    "epochs batch peak_rate warmup momentum weight_decay label_smoothing shift muon_rate muon_decay cutout"
).split()
"""Fields of a recipe that the identity of every checkpoint names. A field that is added later is named only if it
differs from its default, so that older checkpoints stay valid."""


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with Nesterov momentum, optionally Muon for the convolutions, and a one-cycle learning rate.

    Attributes:
        epochs: passes over the training data.
        batch: images a step. `batch`, `shift` and `cutout` are for the study's images: other data come in batches.
        peak_rate: highest learning rate of SGD (one cycle: Smith & Topin, 2018).
        warmup: share of all steps in which the rates rise linearly; after that they fall to 0 along a cosine.
        momentum: of both optimizers.
        weight_decay: L2 penalty of SGD's weights; biases and BatchNorm have none.
        label_smoothing: mass spread over all classes (Szegedy et al., 2016).
        muon_rate: highest learning rate of Muon (Jordan et al., 2024); 0 leaves the convolutions to SGD.
        muon_decay: decoupled weight decay of Muon.
        shift: largest shift of an image, in pixels.
        cutout: side of the square that is painted over in each image, in pixels (DeVries & Taylor, 2017).
        distillation: share of the loss that a teacher gives, in [0, 1]; the labels give the rest (Hinton et al., 2015,
            section 2). It needs `train(..., teacher=...)`. At 1 the labels are not used.
        temperature: by which the scores of teacher and network are divided.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> [Recipe(epochs=10, warmup=0.5).cycle(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 0.0]
    """

    epochs: int
    batch: int = 256
    peak_rate: float = 0.2
    warmup: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    shift: int = 4
    muon_rate: float = 0.0
    muon_decay: float = 0.05
    cutout: int = 0
    distillation: float = 0.0
    temperature: float = 4.0

    def __post_init__(self):
        for names, rule, holds in (
            ("epochs shift cutout", "be an integer of at least 0", lambda x: hasattr(x, "__index__") and x >= 0),
            ("batch", "be an integer of at least 1", lambda x: hasattr(x, "__index__") and x >= 1),
            ("peak_rate weight_decay muon_rate muon_decay", "be a finite number of at least 0", lambda x: 0 <= x < inf),
            ("warmup momentum", "lie in [0, 1)", lambda x: 0 <= x < 1),
            ("label_smoothing distillation", "lie in [0, 1]", lambda x: 0 <= x <= 1),
            ("temperature", "be a positive number", lambda x: 0 < x < inf),
        ):
            for name in names.split():
                if not (isinstance(value := getattr(self, name), Real) and holds(value)):
                    raise ValueError(f"{name} must {rule}, got {value!r}")

    def cycle(self, progress: float) -> float:
        """Share of its peak that a learning rate has after a share `progress` of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + cos(pi * (progress - self.warmup) / (1 - self.warmup)))

    def settings(self, always: Collection[str] = ()) -> dict:
        """The fields in `always`, and all others that differ from their default."""
        shown = [f.name for f in fields(self) if f.name in always or getattr(self, f.name) != f.default]
        return {name: getattr(self, name) for name in shown}


@dataclass(frozen=True)
class Epoch:
    """Result of one epoch.

    Attributes:
        epoch: 1 for the first.
        seconds: training time, without evaluation.
        loss: mean training loss; None if it is not finite.
        validation, test: accuracies in [0, 1] after the epoch; None without such data.

    Example:
        >>> Epoch(epoch=1, seconds=2.5, loss=0.7, validation=0.8, test=None).validation
        0.8
    """

    epoch: int
    seconds: float
    loss: float | None
    validation: float | None
    test: float | None


def train(
    model: nn.Module,
    data: Iterable,
    recipe: Recipe,
    validation: Iterable | None = None,
    test: Iterable | None = None,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    identity: str = "",
    source: dict | None = None,
    fast: bool = False,
) -> list[Epoch]:
    """Train a classifier in place, on its device, and evaluate it after every epoch.

    A network in evaluation mode is put into training mode. In a network in training mode, submodules in evaluation mode
    stay so, such as frozen BatchNorms. Afterwards every submodule has its mode back. Frozen parameters stay as they
    are. Convolutions and linear layers run in bfloat16 where the device has instructions for it.

    Args:
        model: answers with class scores (b, classes) or (b, classes, ...).
        data: training batches of (inputs, labels), read once an epoch, and once more if it has no length. Inputs are a
            tensor, a tuple of arguments or a dict of named ones. Labels are class numbers (b, ...), where -100 stands
            for none, or probabilities of the shape of the scores. `data.set_epoch(epoch)` is called if it exists.
        recipe: the settings; `epochs=0` trains nothing.
        validation, test: batches for the accuracies of each epoch; their labels are class numbers.
        teacher: for `Recipe.distillation`, as a rule the dense network: on the device of `model`, answers with the same
            classes, runs in evaluation mode and is not changed.
        seed: of PyTorch's global generator, which a shuffling `DataLoader` and dropout draw from; below 2**44.
        checkpoint: file for the state after each epoch. A run with the same `identity`, recipe and seed continues from
            it; a file of any other is set aside with a warning.
        identity: name of the run. Networks of one shape need one each; without it a warning says that a checkpoint
            began with other weights.
        source: how to build the network again, noted in the checkpoint (see `storage.save`).
        fast: use channels_last layout, keep memory for the rest of the process (CPU), and capture one step as a graph
            (CUDA, one input). Batches must have one size, and Python control flow in `forward` runs once, at capture.

    Returns:
        One `Epoch` for each epoch, those before an interruption included.

    Raises:
        ValueError: nothing to train, data that cannot be read in every epoch, labels that are no classes of the scores
            (on a GPU only the first batch is searched for numbers out of range), or a teacher that cannot teach.
        files.FileError: the checkpoint cannot be written (disk full, read-only).

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> loader = [(torch.rand(16, 1, 8, 8), torch.arange(16) % 2) for _ in range(4)]
        >>> history = train(model, loader, Recipe(epochs=2, peak_rate=0.01), validation=loader)
        >>> [epoch.epoch for epoch in history]
        [1, 2]
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, got {type(recipe).__name__}: pass Recipe(epochs=...)")
    check_number("seed", seed, 0, 2**44 - 1)  # PyTorch takes 64 bits, of which the epoch has 20
    _check_rereadable(data)
    check_teacher(teacher, model, recipe.distillation)
    for batches in (validation, test):
        if batches is not None:
            _check_rereadable(batches)
            _check_evaluation(model, batches)
    steps = length_hint(data) or sum(1 for _ in data)
    if fast:
        _prepare_fast(model)
    optimizers = _optimizers(model, recipe)
    start = "" if identity or checkpoint is None else files.digest(model.state_dict())
    identity = f"{identity} {recipe.settings(CHECKPOINT_SETTINGS)} seed {seed}"
    if teacher is not None:
        identity += f" teacher {files.digest(teacher.state_dict())}"
    history = []
    if checkpoint is not None:
        checkpoint = Path(checkpoint)
        history = _restore(_state(model, optimizers), checkpoint, identity, start)
    remaining = range(len(history), recipe.epochs)
    if checkpoint is not None and remaining:
        files.check_writable(checkpoint)
    trained = [module for module in model.modules() if module.training or not model.training]
    with evaluating(model), nullcontext() if teacher is None else evaluating(teacher):  # restores all modes at the end
        for module in trained:
            module.training = True
        step = _step(model, data, recipe, teacher, fast and len(remaining) > 0)
        bar: dict[str, Any] = {"initial": len(history), "total": recipe.epochs, "unit": "epoch"}
        for epoch in tqdm(remaining, "train", leave=False, disable=None, **bar):
            started = time.perf_counter()
            loss = _epoch(step, optimizers, data, recipe, steps, seed, epoch)
            seconds = time.perf_counter() - started
            accuracies = [None if batches is None else accuracy(model, batches) for batches in (validation, test)]
            history.append(Epoch(epoch + 1, seconds, loss, *accuracies))
            if checkpoint is not None:
                about = {"identity": identity, "source": source, "history": [asdict(epoch) for epoch in history]}
                about |= {"start": start} if start else {}
                files.write_tensors(checkpoint, _state(model, optimizers), about)
    model.zero_grad()
    return history


def _check_rereadable(data: Any) -> None:
    if isinstance(data, Iterator):
        raise ValueError("an iterator is empty after one epoch: pass a list of batches or a DataLoader")
    _checked_batches(data)


def _checked_batches(data: Any) -> Iterable:
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise ValueError(f"data must be batches, got {type(data).__name__}: pass a list of batches or a DataLoader")
    return data


def _prepare_fast(model: nn.Module) -> None:
    """Use the channels_last layout, and on the CPU keep memory for the rest of the process."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    if device_of(model).type == "cpu":
        keep_memory()


def accuracy(model: nn.Module, data: Iterable, *, precise: bool = False) -> float:
    """Share of the labels that get the highest score. The network runs in evaluation mode and keeps its modes.

    As in training, convolutions and linear layers run in bfloat16 where the device has instructions for it, so that
    close scores can tie; of equal scores the first counts. Scores that are NaN are wrong. The label -100 stands for
    none.

    Args:
        model: answers with class scores (b, classes).
        data: batches of (inputs, labels); the labels are class numbers of shape (b,).
        precise: compute in the type of the network's own weights instead.

    Raises:
        ValueError: no batches, batches of another kind, no labels, labels that are no classes of the scores (a GPU
            searches only the first batch for numbers out of range), or a single score.

    Example:
        >>> accuracy(nn.Identity(), [(torch.eye(4), torch.tensor([0, 1, 2, 2]))])
        0.75
    """
    device = device_of(model)
    right, total = torch.zeros((2,), dtype=torch.int64, device=device)
    with evaluating(model), torch.no_grad(), nullcontext() if precise else autocast(device):
        for number, (inputs, labels) in enumerate(_batches(data, device)):
            scores = _scores(model, inputs)
            labels = checked_labels(scores, labels)
            if number == 0 or device.type == "cpu":
                check_classes(labels, scores.shape[1])
            right += ((scores.argmax(1) == labels) & ~scores.isnan().any(1)).sum()
            total += (labels != UNLABELLED).sum()
    if not total:
        raise ValueError("the data have no labels: every batch is empty or unlabelled, so pass more data")
    return right.item() / total.item()


def recalibrate(model: nn.Module, data: Iterable, batches: int = 8) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm, in place, and return the network.

    Removing filters shifts the inputs of the next layers. A few forward passes correct the statistics, so that damage
    is judged fairly (Li et al., "EagleEye", ECCV 2020). A frozen BatchNorm is corrected too, because it holds the
    statistics of the dense network. Nothing else changes; after an error, nothing at all.

    Args:
        model: runs in evaluation mode except for its BatchNorms.
        data: training batches, tensors of inputs or pairs (inputs, labels), of which the labels are not used; or one
            batch.
        batches: number of batches that are read, at least 1.

    Raises:
        ValueError: no batches, batches of another kind, an empty batch, or statistics that are NaN or infinite.

    Example:
        >>> norm = recalibrate(nn.BatchNorm1d(1), torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean.item(), norm.running_var.item()
        (2.0, 2.0)
    """
    check_number("batches", batches, 1)
    device, done = device_of(model), False
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    with evaluating(model), torch.no_grad(), autocast(device):
        try:
            for norm in norms:
                norm.train().reset_running_stats()
                norm.momentum = None  # the mean over all batches
            for inputs, _ in islice(_batches(_as_pairs(data), device, labelled=False), batches):
                if not batch_size(inputs):
                    raise ValueError("a batch is empty, so it has no statistics: leave it out")
                _scores(model, inputs)
            if not all(statistic.isfinite().all() for norm in norms for statistic in norm.buffers()):
                raise ValueError("a BatchNorm reads NaN or infinity: the inputs or weights are damaged")
            done = True
        finally:
            for norm, momentum, state in before:
                norm.momentum = momentum
                if not (done and norm.num_batches_tracked):  # failed, or not part of the forward pass
                    norm.load_state_dict(state)
    return model


def _as_pairs(data: Iterable) -> Iterator:
    """Batches whose labels are not needed: a tensor alone, or alone in a list, becomes a pair."""
    for batch in [data] if isinstance(data, Tensor) or is_pair(data) else _checked_batches(data):
        alone = batch[0] if isinstance(batch, tuple | list) and len(batch) == 1 else batch
        yield (alone, None) if isinstance(alone, Tensor) else batch


def _batches(data: Iterable, device: torch.device, labelled: bool = True) -> Iterator[tuple[Any, Tensor]]:
    """Inputs and labels of every batch, on `device`. Labels that are not used may be anything, and become empty."""
    batch = None
    for batch in data:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise ValueError(
                f"a batch must be a pair (inputs, labels), got {type(batch).__name__}: pass a loader of pairs"
            )
        if labelled and not isinstance(batch[1], Tensor):
            raise ValueError(f"labels must be a tensor, got {type(batch[1]).__name__}: pass torch.as_tensor(labels)")
        yield tree_map_only(Tensor, lambda x: x.to(device), (batch[0], batch[1] if labelled else torch.empty(0)))
    if batch is None:
        raise ValueError("the data have no batches: pass a list or a DataLoader, which can be read more than once")


def _scores(model: nn.Module, inputs: Any) -> Tensor:
    try:
        scores = call(model, copied_inputs(inputs))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError("a BatchNorm needs batches of two inputs or more: set drop_last=True in the loader") from error
    if not isinstance(scores, Tensor):
        raise ValueError(
            f"the network must answer with a tensor of class scores, got {type(scores).__name__}: wrap it in a module "
            "that returns the scores"
        )
    return scores


def _check_evaluation(model: nn.Module, data: Iterable) -> None:
    """Refuse data on which no accuracy can be measured, before an epoch is lost; only the first batch is read."""
    with torch.random.fork_rng(devices=[]):  # a shuffling loader draws numbers
        accuracy(model, islice(data, 1))


def _step(model: nn.Module, data: Iterable, recipe: Recipe, teacher: nn.Module | None, fast: bool) -> Step:
    """A function that sets the gradients for a batch and returns its loss."""
    first = iter([True])

    def step(inputs, labels: Tensor) -> Tensor:
        with autocast(labels.device):
            scores = _scores(model, inputs)
            loss = scores.new_zeros(())
            if recipe.distillation < 1:
                search = labels.device.type == "cpu" or next(first, False)  # for wrong labels: a GPU has to wait for it
                loss = (1 - recipe.distillation) * loss_of_labels(scores, labels, recipe.label_smoothing, search)
            if teacher is not None:
                with torch.no_grad():
                    target = _scores(teacher, inputs)
                loss = loss + recipe.distillation * loss_of_teacher(scores, target, recipe.temperature)
        model.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach()

    if fast and device_of(model).type == "cuda":
        return captured(step, model, *next(_batches(data, device_of(model), recipe.distillation < 1)))
    return step


def _epoch(step: Step, optimizers, data: Iterable, recipe: Recipe, steps: int, seed: int, epoch: int) -> float | None:
    """Train for one epoch. Return the mean loss, or None if it is not finite."""
    device = optimizers[0].param_groups[0]["params"][0].device
    total, count = torch.zeros((), device=device), 0
    if hasattr(data, "set_epoch"):
        data.set_epoch(epoch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed((int(seed) << 20) + epoch)
        for count, (inputs, labels) in enumerate(_batches(data, device, recipe.distillation < 1), 1):
            share = recipe.cycle(min(1.0, (epoch * steps + count - 1) / (recipe.epochs * steps)))
            if recipe.epochs * steps == 1:
                share = share or recipe.cycle(0.5)  # the cycle begins at 0, where a single step would change nothing
            total += step(inputs, labels)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak"]
                optimizer.step()
    mean = total.item() / count
    return mean if isfinite(mean) else None


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD, and Muon for the convolutions if it has a rate. Each group of parameters holds its peak rate."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "nothing to train: no parameter of the network requires a gradient; call requires_grad_(True) on some"
        )
    convolutions = [p for p in parameters if p.ndim == 4 and recipe.muon_rate]
    weights = [p for p in parameters if p.ndim > 1 and not (p.ndim == 4 and recipe.muon_rate)]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    settings: dict[str, Any] = {"lr": 0.0, "momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    optimizers: list[torch.optim.Optimizer] = []
    if weights or vectors:
        optimizers.append(torch.optim.SGD([group for group in groups if group["params"]], **settings))
    if convolutions:
        optimizers.append(Muon(convolutions, weight_decay=recipe.muon_decay, **settings))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = recipe.muon_rate if isinstance(optimizer, Muon) else recipe.peak_rate
    return optimizers


def _state(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor that training changes, by its name in a checkpoint. Momentum is 0 before the first step."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for optimizer in optimizers:
        for i, moved in enumerate(chain.from_iterable(group["params"] for group in optimizer.param_groups)):
            momentum = optimizer.state[moved].setdefault("momentum_buffer", torch.zeros_like(moved))
            state[f"momentum.{type(optimizer).__name__}.{i}"] = momentum
    return state


def _restore(state: dict[str, Tensor], checkpoint: Path, identity: str, start: str) -> list[Epoch]:
    """Continue from a checkpoint of this run. Return the epochs that are done.

    Args:
        start: digest of the network's weights; empty if the identity is enough.
    """
    stored = files.resume(files.read_tensors, checkpoint, identity)
    if stored is None:
        return []
    tensors, metadata = stored
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in state.items()}:
        files.set_aside(checkpoint, f"{checkpoint} is of a network with other layers")
        return []
    try:
        history = [Epoch(**epoch) for epoch in metadata["history"]]
    except (KeyError, TypeError):
        files.set_aside(checkpoint, f"{checkpoint} holds no history of epochs")
        return []
    if start != metadata.get("start", start) and not all(
        torch.equal(tensors[name], x.cpu()) for name, x in state.items() if name.startswith("model.")
    ):
        warnings.warn(
            f"{checkpoint} began with other weights than this network, which gets those of the checkpoint: give every "
            "network its own identity or file",
            files.FileWarning,
            stacklevel=3,
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])
    return history
