"""One training loop, for the dense network and for fine-tuning what pruning left.

The data lie on the device as uint8, a batch is augmented there at once, and nothing waits for the
device inside an epoch. Everything random in an epoch is drawn from (seed, epoch), so a run that
continues from a checkpoint repeats the uninterrupted one bit for bit, and two methods with the same
seed see the same batches.
"""

import contextlib
import ctypes
import gc
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from math import cos, isfinite, pi
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from topoprune import store
from topoprune.convolution import SmallAsProducts, small
from topoprune.data import Data, Split, on_device

EVALUATION_BATCH = 1000
SIDE = 32
"""Pixels of an image, either way."""


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
            raise ValueError(f"a recipe needs epochs >= 0 and batch >= 1, got {self.epochs} and "
                             f"{self.batch}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1), got {self.warmup}: it is a share of all "
                             "steps")
        if not 0 <= self.cutout < SIDE:
            raise ValueError(f"cutout must lie in [0, {SIDE}), got {self.cutout}: it is a side in pixels "
                             "of a part of the image")

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


def train(model: nn.Module, data: Data, recipe: Recipe, seed: int = 0,
          checkpoint: Path | None = None, identity: str = "",
          source: dict | None = None) -> list[Epoch]:
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
        store.StoreError: the checkpoint cannot be written (disk full, read-only).
    """
    if recipe.batch > len(data.train):
        raise ValueError(f"batch must be at most the {len(data.train)} training images, got "
                         f"{recipe.batch}")
    if data.train.labels.device.type == "cpu":
        keep_memory()
    model.to(memory_format=torch.channels_last)
    optimizers = _optimizers(model, recipe)
    identity = f"{identity} {asdict(recipe)} seed {seed}"
    history = _restore(model, optimizers, checkpoint, identity)
    gradients = _gradients_of(model, data, recipe) if len(history) < recipe.epochs else None
    for epoch in tqdm(range(len(history), recipe.epochs), initial=len(history),
                      total=recipe.epochs, desc="train", unit="epoch", leave=False, disable=None):
        started = time.perf_counter()
        loss = _epoch(gradients, model, optimizers, data, recipe, seed, epoch)
        seconds = time.perf_counter() - started
        history.append(Epoch(epoch + 1, seconds, loss, accuracy(model, data, data.validation),
                             accuracy(model, data, data.test)))
        if checkpoint is not None:
            _save(model, optimizers, checkpoint, history, {"identity": identity, "source": source})
    model.zero_grad()
    return history


def accuracy(model: nn.Module, data: Data, split: Split) -> float:
    """Share of the images of `split` that `model` classifies correctly, without augmentation."""
    model.eval()
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    with torch.inference_mode(), _autocast(split.labels.device):
        for images, labels in _batches(split, EVALUATION_BATCH):
            right += (model(data.normalized(images)).argmax(1) == labels).sum()
    return right.item() / len(split)


def recalibrate(model: nn.Module, data: Data, batches: int = 8, size: int = 256) -> nn.Module:
    """Re-estimate the running statistics of every BatchNorm on training images, in place.

    Removing filters shifts what the next layers see; a few forward passes without gradient correct
    the statistics (Li et al., "EagleEye", ECCV 2020), so that damage is judged fairly.
    """
    images = data.train.images[:batches * size].split(size)
    with _autocast(data.train.labels.device):
        update_bn((data.normalized(batch) for batch in images), model)
    return model


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc; elsewhere do nothing.

    A step frees as many large buffers as the next one asks for. By default glibc maps each anew, and
    the system fills it with zeros, page fault by page fault; `bench_training` measures what that costs.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # the largest size_t: never


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """With TOPOPRUNE_DETERMINISTIC=1 in the environment, CUDA repeats itself bit for bit, as the CPU
    does anyway: sums in one order. Otherwise nothing changes.

    An operation that has no such order is named in a warning. Enter before CUDA is first used.
    """
    if not os.environ.get("TOPOPRUNE_DETERMINISTIC"):
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it as it starts
    usual = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(usual, warn_only=warned)


def default_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def precision(device: str) -> torch.dtype:
    """What convolutions are computed in on a kind of device ("cpu", "cuda"): bfloat16 where it has
    instructions for that, else float32.

    Others emulate bfloat16: a processor with AVX2 alone trains some ten times slower in it than in
    float32, one with AVX-512 alone twice (`bench_training` measures both).
    """
    native = (torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda"
              else _bfloat16_instructions())
    return torch.bfloat16 if native else torch.float32


def products(device: str) -> int:
    """Columns of the largest image that a kind of device convolves as a product of matrices, see
    `convolution`; 0 where it convolves none so."""
    return small() if device == "cpu" and precision(device) is torch.bfloat16 else 0


def _bfloat16_instructions() -> bool:
    """Whether this processor has instructions for bfloat16 and oneDNN uses them."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and not torch.cpu._is_avx512_bf16_supported():
        return False  # oneDNN is content with AVX-512 alone, where it emulates them
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


Gradients = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) -> the loss, after the gradients of the weights."""


def _gradients_of(model: nn.Module, data: Data, recipe: Recipe) -> Gradients:
    """The gradients of a batch; on CUDA as one graph, replayed with every batch.

    A step is some hundred short kernels: launching them one by one takes longer than running them.
    """
    step, device = partial(_gradients, model, data, recipe), data.train.labels.device
    if device.type != "cuda":
        return step
    try:
        with torch.cuda.device(device):  # which need not be the current one
            return _captured(step, model, data, recipe)
    except RuntimeError as error:  # what waits for the device, or copies to it, in no graph
        torch.cuda.synchronize(device)
        warnings.warn(f"the network is trained without a CUDA graph, which is slower: {error}", stacklevel=3)
        return step


def _gradients(model: nn.Module, data: Data, recipe: Recipe, images: Tensor, labels: Tensor) -> Tensor:
    with _autocast(labels.device):
        logits = model(data.normalized(images))
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return loss.detach()


def _captured(step: Gradients, model: nn.Module, data: Data, recipe: Recipe) -> Gradients:
    """`step` as a CUDA graph, which leaves what it computes where it was while it was captured.

    The steps that warm it up change the running statistics alone, which are put back.
    """
    images, labels = data.train.images[:recipe.batch].clone(), data.train.labels[:recipe.batch].clone()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    gc.collect()  # what looked at the network, torch-pruning say, tied its gradients to another stream
    beside = torch.cuda.Stream()  # where PyTorch wants the warming up
    beside.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(beside):
            for _ in range(3):
                step(images, labels)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        model.zero_grad(set_to_none=True)  # so that the graph has gradients of its own
        with torch.cuda.graph(graph, stream=beside):
            loss = step(images, labels)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def replayed(batch: Tensor, answers: Tensor) -> Tensor:
        images.copy_(batch)
        labels.copy_(answers)
        graph.replay()
        return loss

    return replayed


def _epoch(gradients: Gradients, model, optimizers, data: Data, recipe: Recipe, seed: int,
           epoch: int) -> float | None:
    """One pass over the training split; the mean loss, None if it is not finite."""
    device = data.train.labels.device
    # Drawn on the CPU: the same numbers on every device.
    random = torch.Generator().manual_seed((seed << 20) + epoch)
    steps = len(data.train) // recipe.batch
    total = torch.zeros((), device=device)
    model.train()
    with torch.random.fork_rng(devices=[]):  # dropout in networks that are not ours
        torch.manual_seed((seed << 20) + epoch)
        mirrored = _mirrored(data, seed, epoch).to(device)
        for step, (images, labels) in enumerate(_augmented(data, recipe, random, mirrored)):
            share = recipe.cycle((epoch * steps + step) / (recipe.epochs * steps))
            total += gradients(images, labels)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak"]
                optimizer.step()
    mean = total.item() / steps
    return mean if isfinite(mean) else None


def _mirrored(data: Data, seed: int, epoch: int) -> Bool[Tensor, " n"]:
    """Which training images this epoch mirrors: a random half, then the other half, in turn.

    Two epochs so show every image both ways (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024).
    """
    first = torch.rand(len(data.train), generator=torch.Generator().manual_seed(seed)) < 0.5
    return (first ^ bool(epoch % 2)) & data.flips


def _augmented(data: Data, recipe: Recipe, random: torch.Generator,
               mirrored: Bool[Tensor, " n"]) -> Iterator:
    """Shuffled batches of shifted and mirrored images, a square of each cut out, on the device."""
    device = data.train.labels.device
    n = len(data.train) // recipe.batch * recipe.batch
    order = torch.randperm(len(data.train), generator=random)[:n].to(device)
    shifts = torch.randint(0, 2 * recipe.shift + 1, (n, 2), generator=random).to(device)
    if recipe.cutout:  # drawn last: without it the numbers are those of older records
        corners = torch.randint(0, SIDE - recipe.cutout + 1, (n, 2), generator=random).to(device)
    padded = _padded(data.train.images, recipe.shift)
    for part in range(0, n, recipe.batch):
        rows = slice(part, part + recipe.batch)
        images = _crop(padded, order[rows], shifts[rows], mirrored[order[rows]])
        if recipe.cutout:
            images = _painted(images, corners[rows], recipe.cutout, data.mean)
        yield images, data.train.labels[order[rows]]


def _padded(images: UInt8[Tensor, "n h w c"], shift: int) -> UInt8[Tensor, "n H W c"]:
    """Edges mirrored, without repeating the outermost row and column."""
    side = images.shape[1]
    rows = (torch.arange(-shift, side + shift, device=images.device).abs() - (side - 1)).abs()
    rows = side - 1 - rows
    return images[:, rows[:, None], rows]


def _crop(padded: UInt8[Tensor, "n H W c"], chosen: Int64[Tensor, " b"],
          shifts: Int64[Tensor, "b 2"], mirrored) -> UInt8[Tensor, "b h w c"]:
    """Each chosen image at its own shift, some mirrored, in one gather."""
    side = torch.arange(SIDE, device=padded.device)
    columns = torch.where(mirrored[:, None], SIDE - 1 - side, side) + shifts[:, 1:]
    rows = side + shifts[:, :1]
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def _painted(images: UInt8[Tensor, "b h w c"], corners: Int64[Tensor, "b 2"], size: int,
             colour: tuple[float, ...]) -> UInt8[Tensor, "b h w c"]:
    """A square of each image, from its upper left corner on, in one colour (channels in [0, 1])."""
    away = torch.arange(SIDE, device=images.device) - corners[:, :, None]
    rows, columns = ((away >= 0) & (away < size)).unbind(1)
    paint = (on_device(colour, images.device) + 0.5).to(torch.uint8)
    return torch.where((rows[:, :, None] & columns[:, None, :])[..., None], paint, images)


def _batches(split: Split, size: int):
    return zip(split.images.split(size), split.labels.split(size), strict=True)


@contextlib.contextmanager
def _autocast(device: torch.device) -> Iterator[None]:
    """The precision of `device`, and the way of convolving that suits it."""
    native, columns = precision(device.type) is torch.bfloat16, products(device.type)
    with (torch.autocast(device.type, dtype=torch.bfloat16, enabled=native),
          SmallAsProducts(columns) if columns else contextlib.nullcontext()):
        yield


class _Muon(torch.optim.Muon):
    """PyTorch's Muon takes matrices only: here each row of one is a filter of a convolution.

    It makes them orthogonal in bfloat16; here in float32 where the device has no instructions for that.
    """

    def __init__(self, weights: list[nn.Parameter], **settings):
        self.weights = weights
        matrices = [_matrix(weight.detach()) for weight in weights]
        if any(m.data_ptr() != w.data_ptr() for m, w in zip(matrices, weights, strict=True)):
            raise ValueError("Muon needs the network in channels_last: what it moved would be copies")
        super().__init__(matrices, **settings)

    def step(self):
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad)
        native = precision(self.weights[0].device.type) is torch.bfloat16
        with contextlib.nullcontext() if native else _InFloat32():
            super().step()


class _InFloat32(TorchFunctionMode):
    """Conversions to bfloat16 give float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.bfloat16:  # PyTorch 2.9
            return args[0].to(torch.float32, copy=True)
        if kwargs.get("dtype") is torch.bfloat16:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _matrix(weight: Tensor) -> Tensor:
    """(filters, channels, h, w) -> (filters, h * w * channels); of a weight in channels_last a view."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Each group of parameters carries the peak of its rate."""
    convolutions = [p for p in model.parameters() if p.ndim == 4 and recipe.muon_rate]
    taken = set(map(id, convolutions))
    weights = [p for p in model.parameters() if p.ndim > 1 and id(p) not in taken]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay},
              {"params": free, "weight_decay": 0.0}]
    momentum = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    optimizers = [torch.optim.SGD([g for g in groups if g["params"]], lr=0.0, **momentum)]
    if convolutions:
        optimizers.append(_Muon(convolutions, lr=0.0, weight_decay=recipe.muon_decay, **momentum))
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
    tensors |= {name: state["momentum_buffer"] for name, state, _ in _moving(optimizers)
                if state.get("momentum_buffer") is not None}
    store.write_tensors(checkpoint, tensors,
                        {**about, "history": [asdict(epoch) for epoch in history]})


def _restore(model, optimizers, checkpoint: Path | None, identity: str) -> list[Epoch]:
    """Continue from the checkpoint, where there is one that belongs to this run."""
    found = store.resume_tensors(checkpoint, identity) if checkpoint is not None else None
    if found is None:
        return []
    tensors, metadata = found
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    moving = {name: value for name, _, value in _moving(optimizers) if name in tensors}
    wanted = {name: value.shape for name, value in {**model.state_dict(), **moving}.items()}
    if wanted != {name.removeprefix("model."): value.shape for name, value in tensors.items()}:
        store.set_aside(checkpoint, f"{checkpoint} is of a network with other layers")
        return []
    try:
        history = [Epoch(**epoch) for epoch in metadata["history"]]
    except (KeyError, TypeError):
        store.set_aside(checkpoint, f"{checkpoint} holds no history of epochs")
        return []
    model.load_state_dict(weights)
    for name, state, parameter in _moving(optimizers):
        if name in tensors:
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(tensors[name])
    return history
