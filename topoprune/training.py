"""One training loop, for the dense network and for fine-tuning what pruning left.

The data lie on the device as uint8, a batch is augmented there at once, and nothing waits for the
device inside an epoch. Everything random in an epoch is drawn from (seed, epoch), so a run that
continues from a checkpoint repeats the uninterrupted one bit for bit, and two methods with the same
seed see the same batches.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import cos, isfinite, pi
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from topoprune import files
from topoprune._engine.augmentation import SIDE, augmented, mirrored_images
from topoprune._engine.graph import Gradients, captured
from topoprune._engine.memory import keep_memory
from topoprune._engine.muon import Muon
from topoprune._engine.precision import autocast
from topoprune.data import Data, Split

EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with Nesterov momentum under a one-cycle rate, and Muon where it is asked for.

    Attributes:
        epochs: passes over the training split.
        batch: images a step; the last incomplete batch of an epoch is dropped.
        peak_rate: learning rate of SGD at the top of the cycle (Smith & Topin, 2018).
        warmup: share of all steps in which the rates rise linearly; then they fall as a cosine to 0.
        momentum: Nesterov momentum, of both.
        weight_decay: L2 penalty of SGD's weights; biases and BatchNorm are left free.
        muon_rate: learning rate at the top of the cycle of Muon (Jordan et al., "Muon", 2024), which
            then takes the convolutions from SGD; 0 leaves them there.
        muon_decay: decoupled weight decay of Muon.
        label_smoothing: mass spread over all classes (Szegedy et al., 2016).
        shift: pixels that an image is shifted by at most, edges mirrored.
        cutout: side in pixels of a square that is painted over in every image, at a random place inside
            it, with the mean colour of the training images (DeVries & Taylor, "Cutout", 2017).
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

    def __post_init__(self):
        if self.epochs < 0 or self.batch < 1:
            raise ValueError(f"a recipe needs epochs >= 0 and batch >= 1, got {self.epochs} and {self.batch}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}: it is a share of all steps")
        if not 0 <= self.cutout < SIDE:
            raise ValueError(
                f"cutout must lie in [0, {SIDE}), got {self.cutout}: it is a side in pixels of a part of the image"
            )

    def cycle(self, progress: float) -> float:
        """Share of its peak that a learning rate has after the share `progress` of all steps."""
        if progress < self.warmup:
            return progress / self.warmup
        fall = (progress - self.warmup) / (1 - self.warmup)
        return 0.5 * (1 + cos(pi * fall))


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave.

    Attributes:
        epoch: 1 for the first.
        seconds: training time, evaluation left out.
        loss: mean training loss; None where it is no longer finite.
        validation, test: accuracies in [0, 1] after the epoch.
    """

    epoch: int
    seconds: float
    loss: float | None
    validation: float
    test: float


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    seed: int = 0,
    checkpoint: Path | None = None,
    identity: str = "",
    source: dict | None = None,
) -> list[Epoch]:
    """Train `model` in place on the device where it lies, evaluating after every epoch.

    On the CPU the process keeps the memory of a step for the next one, see `keep_memory`. On CUDA a step
    is recorded once and replayed: what a network decides in Python, it decides once.

    Args:
        model: a classifier of (b, 3, 32, 32) images.
        data: on the same device as the model.
        recipe: the settings; `epochs=0` trains nothing.
        seed: of the data order and the augmentation.
        checkpoint: file that the state is written to after each epoch, and continued from where it
            exists and belongs to `identity`; any other is set aside with a warning.
        identity: names the run that the checkpoint belongs to.
        source: how to build the network again, noted in the checkpoint (see `pruning.save`).

    Returns:
        One `Epoch` for each epoch, those of earlier sittings included.

    Raises:
        ValueError: a batch larger than the training split.
        files.FileError: the checkpoint cannot be written (disk full, read-only).
    """
    if recipe.batch > len(data.train):
        raise ValueError(f"batch must be at most the {len(data.train)} training images, got {recipe.batch}")
    if data.train.labels.device.type == "cpu":
        keep_memory()
    model.to(memory_format=torch.channels_last)
    optimizers = _optimizers(model, recipe)
    identity = f"{identity} {asdict(recipe)} seed {seed}"
    history = _restore(model, optimizers, checkpoint, identity)
    gradients = _gradients_of(model, data, recipe) if len(history) < recipe.epochs else None
    for epoch in tqdm(
        range(len(history), recipe.epochs),
        initial=len(history),
        total=recipe.epochs,
        desc="train",
        unit="epoch",
        leave=False,
        disable=None,
    ):
        started = time.perf_counter()
        loss = _epoch(gradients, model, optimizers, data, recipe, seed, epoch)
        seconds = time.perf_counter() - started
        history.append(
            Epoch(epoch + 1, seconds, loss, accuracy(model, data, data.validation), accuracy(model, data, data.test))
        )
        if checkpoint is not None:
            _save(model, optimizers, checkpoint, history, {"identity": identity, "source": source})
    model.zero_grad()
    return history


def accuracy(model: nn.Module, data: Data, split: Split) -> float:
    """Share of the images of `split` that `model` classifies correctly, without augmentation."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    with torch.inference_mode(), autocast(split.labels.device):
        for images, labels in _batches(split, EVALUATION_BATCH):
            right += (model(data.normalized(images)).argmax(1) == labels).sum()
    return right.item() / len(split)


def recalibrate(model: nn.Module, data: Data, batches: int = 8, size: int = 256) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm on training images, in place.

    Removing filters shifts what the next layers see; a few forward passes without gradient correct
    the statistics (Li et al., "EagleEye", ECCV 2020), so that damage is judged fairly.
    """
    images = data.train.images[: batches * size].split(size)
    with autocast(data.train.labels.device):
        update_bn((data.normalized(batch) for batch in images), model)
    return model


def _gradients_of(model: nn.Module, data: Data, recipe: Recipe) -> Gradients:
    """The gradients of a batch; on CUDA as one graph, replayed with every batch.

    A step is some hundred short kernels: launching them one by one takes longer than running them.
    """
    step, device = partial(_gradients, model, data, recipe), data.train.labels.device
    if device.type != "cuda":
        return step
    try:
        with torch.cuda.device(device):  # which need not be the current one
            return captured(step, model, data, recipe.batch)
    except RuntimeError as error:  # what waits for the device, or copies to it, in no graph
        torch.cuda.synchronize(device)
        warnings.warn(f"the network is trained without a CUDA graph, which is slower: {error}", stacklevel=3)
        return step


def _gradients(model: nn.Module, data: Data, recipe: Recipe, images: Tensor, labels: Tensor) -> Tensor:
    with autocast(labels.device):
        logits = model(data.normalized(images))
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


def _epoch(gradients: Gradients, model, optimizers, data: Data, recipe: Recipe, seed: int, epoch: int) -> float | None:
    """One pass over the training split; the mean loss, None if it is not finite."""
    device = data.train.labels.device
    # Drawn on the CPU: the same numbers on every device.
    random = torch.Generator().manual_seed((seed << 20) + epoch)
    steps = len(data.train) // recipe.batch
    total = torch.zeros((), device=device)
    model.train()
    with torch.random.fork_rng(devices=[]):  # dropout in networks that are not ours
        torch.manual_seed((seed << 20) + epoch)
        mirrored = mirrored_images(data, seed, epoch).to(device)
        for step, (images, labels) in enumerate(
            augmented(data, recipe.batch, recipe.shift, recipe.cutout, random, mirrored)
        ):
            share = recipe.cycle((epoch * steps + step) / (recipe.epochs * steps))
            total += gradients(images, labels)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak"]
                optimizer.step()
    mean = total.item() / steps
    return mean if isfinite(mean) else None


def _batches(split: Split, size: int):
    return zip(split.images.split(size), split.labels.split(size), strict=True)


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Each group of parameters carries the peak of its rate."""
    convolutions = [p for p in model.parameters() if p.ndim == 4 and recipe.muon_rate]
    taken = set(map(id, convolutions))
    weights = [p for p in model.parameters() if p.ndim > 1 and id(p) not in taken]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    momentum = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    optimizers = [torch.optim.SGD([g for g in groups if g["params"]], lr=0.0, **momentum)]
    if convolutions:
        optimizers.append(Muon(convolutions, lr=0.0, weight_decay=recipe.muon_decay, **momentum))
    for optimizer, peak in zip(optimizers, (recipe.peak_rate, recipe.muon_rate), strict=False):
        for group in optimizer.param_groups:
            group["peak"] = peak
    return optimizers


def _moving(optimizers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, dict, Tensor]]:
    """Name, state and value of every parameter that an optimizer moves."""
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, parameter in enumerate(parameters):
            yield f"momentum.{type(optimizer).__name__}.{i}", optimizer.state[parameter], parameter


def _save(model, optimizers, checkpoint: Path, history: list[Epoch], about: dict) -> None:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {
        name: state["momentum_buffer"]
        for name, state, _ in _moving(optimizers)
        if state.get("momentum_buffer") is not None
    }
    files.write_tensors(checkpoint, tensors, {**about, "history": [asdict(epoch) for epoch in history]})


def _restore(model, optimizers, checkpoint: Path | None, identity: str) -> list[Epoch]:
    """Continue from the checkpoint, where there is one that belongs to this run."""
    found = files.resume_tensors(checkpoint, identity) if checkpoint is not None else None
    if found is None:
        return []
    tensors, metadata = found
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    moving = {name: value for name, _, value in _moving(optimizers) if name in tensors}
    wanted = {name: value.shape for name, value in {**model.state_dict(), **moving}.items()}
    if wanted != {name.removeprefix("model."): value.shape for name, value in tensors.items()}:
        files.set_aside(checkpoint, f"{checkpoint} is of a network with other layers")
        return []
    try:
        history = [Epoch(**epoch) for epoch in metadata["history"]]
    except (KeyError, TypeError):
        files.set_aside(checkpoint, f"{checkpoint} holds no history of epochs")
        return []
    model.load_state_dict(weights)
    for name, state, parameter in _moving(optimizers):
        if name in tensors:
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(tensors[name])
    return history
