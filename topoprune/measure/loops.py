"""Our training loop beside the loop that one would otherwise write."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from multiprocessing import get_all_start_methods
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from topoprune import training
from topoprune._engine.memory import keep_memory
from topoprune._engine.precision import precision, product_columns
from topoprune.measure.machine import Row
from topoprune.measure.processes import new_processes
from topoprune.measure.workload import Workload, multiply_adds, seconds_per_image
from topoprune.study.images import Data

LOADERS, MORE_LOADERS = 2, 8
"""Worker processes of the usual loop's DataLoader; more of them where a CUDA device waits for images."""


def loops(workload: Workload) -> list[Row]:
    """Training, images a second: the loop that one would otherwise write, in steps to ours."""
    keep_memory()  # in this process; the usual loop runs in another one, without it
    usual_options = _usual_variants(workload)
    in_float32 = {name for name, options in usual_options.items() if not options.get("bfloat16")}
    with new_processes(1) as pool:
        usual = {
            name: partial(_in_process, pool, partial(usual_loop, workload, **options))
            for name, options in usual_options.items()
        }
        variants: dict[str, Callable[[], float]] = {**usual, **_our_variants(workload)}
        first_call = {name: workload.seconds_of(train) for name, train in variants.items()}  # warms up, compiles
        rounds = [{name: train() for name, train in variants.items()} for _ in range(workload.rounds)]
    plain = next(iter(variants))
    flops = 6 * multiply_adds(workload.network())  # forward 2, backward twice as much
    rows = []
    for name in variants:
        rates = [1 / seconds[name] for seconds in rounds]
        rows.append(
            {
                "way": name,
                "images/s": statistics.median(rates),
                "lowest": min(rates),
                "highest": max(rates),
                "first call (s)": first_call[name],
                "times plain": statistics.median(seconds[plain] / seconds[name] for seconds in rounds),
                "TFLOP/s": statistics.median(rates) * flops / 1e12,
                "precision": dtype_name(torch.float32 if name in in_float32 else precision(workload.device)),
            }
        )
    return rows


def batches(workload: Workload) -> list[Row]:
    """Training by the usual loop and by ours, images a second, by the images of a step."""
    keep_memory()
    images = max(workload.images, 2 * max(workload.batches))
    with new_processes(1) as pool:
        return [_at_batch(replace(workload, batch=batch, images=images), pool) for batch in workload.batches]


def _at_batch(workload: Workload, pool: ProcessPoolExecutor) -> Row:
    data = workload.resident_data()
    our_loop(workload.network(), data, workload)  # warms up; the usual loop does not time its first step
    rounds = [
        (_in_process(pool, partial(usual_loop, workload)), our_loop(workload.network(), data, workload))
        for _ in range(workload.rounds)
    ]
    return {
        "batch": workload.batch,
        "usual images/s": statistics.median(1 / usual for usual, _ in rounds),
        "ours images/s": statistics.median(1 / ours for _, ours in rounds),
        "times usual": statistics.median(usual / ours for usual, ours in rounds),
    }


def our_loop(model: nn.Module, data: Data, workload: Workload) -> float:
    """Seconds that `topoprune.train` takes for one image."""
    workload.synchronize()
    return seconds_per_image(model, data, workload.recipe)


def without_graph(call: Callable[[], Any]) -> Any:
    """Return `call()`, in which training launches each operation by itself and captures no CUDA graph."""
    with mock.patch.object(training, "captured", lambda step, *_: step):
        return call()


def uses_bfloat16(device: str) -> bool:
    """Whether training uses bfloat16 on this kind of device."""
    return precision(device) is torch.bfloat16


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _usual_variants(workload: Workload) -> dict[str, dict[str, Any]]:
    """Variants of the usual loop -> their options. Each adds one step that a user can take to the one before."""
    steps: dict[str, dict[str, Any]] = {}
    if workload.device == "cuda":
        steps[f"+ {MORE_LOADERS} loader processes"] = {"loaders": MORE_LOADERS}
    if uses_bfloat16(workload.device):
        steps["+ bfloat16"] = {"bfloat16": True}
    steps["+ channels last"] = {"channels_last": True}
    options: dict[str, Any] = {}
    variants = {"DataLoader, float32": options}
    for name, step in steps.items():
        options = {**options, **step}
        variants[name] = options
    return variants


def _our_variants(workload: Workload) -> dict[str, Callable[[], float]]:
    """Variants in this process -> calls that train for a while and return seconds an image."""
    data, device = workload.resident_data(), workload.device
    variants: dict[str, Callable[[], float]] = {}
    if device == "cpu":
        variants["+ memory kept"] = partial(usual_loop, workload, bfloat16=uses_bfloat16(device), channels_last=True)
    last_step = "resident data"
    if product_columns(device):
        variants["+ resident data"] = lambda: _without_products(data, workload)
        last_step = "small convolutions as products"
    if device == "cuda":
        variants["+ resident data"] = lambda: without_graph(lambda: our_loop(workload.network(), data, workload))
        last_step = "CUDA graph"
    variants[f"+ {last_step} (ours)"] = lambda: our_loop(workload.network(), data, workload)
    if workload.compiled:
        compiled: Any = torch.compile(workload.network())
        variants["ours, torch.compile"] = lambda: our_loop(compiled, data, workload)
    return variants


def _without_products(data: Data, workload: Workload) -> float:
    with mock.patch("topoprune._engine.precision.product_columns", return_value=0):
        return our_loop(workload.network(), data, workload)


def _in_process(pool: ProcessPoolExecutor, call: Callable[[], float]) -> float:
    return pool.submit(call).result()


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """The training split as torchvision's CIFAR10 gives it, with the transforms that its users write."""

    def __init__(self, data: Data):
        # Imported here: it takes two seconds, which the many processes that train by our loop alone need not wait for.
        from torchvision import transforms

        self.images, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.train.mean, data.train.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual_loop(
    workload: Workload, bfloat16: bool = False, channels_last: bool = False, loaders: int = LOADERS
) -> float:
    """Seconds that the loop which one would otherwise write takes for one image.

    The first step is not timed. After it the loader's processes have started and work ahead, as in most of an epoch.
    """
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    model = workload.network().to(**layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        TransformedImages(workload.data),
        workload.batch,
        shuffle=True,
        num_workers=loaders,
        drop_last=True,
        pin_memory=workload.device == "cuda",
        multiprocessing_context=get_all_start_methods()[0] if loaders else None,  # the system's, not the pool's
    )
    steps = min(len(loader) - 1, workload.images // workload.batch)
    started = 0.0
    for step, (images, labels) in enumerate(islice(loader, 1 + steps)):
        images = images.to(workload.device, non_blocking=True, **layout)
        with torch.autocast(workload.device, dtype=torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(images), labels.to(workload.device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 0:
            workload.synchronize()
            started = time.perf_counter()
    workload.synchronize()
    return (time.perf_counter() - started) / (steps * workload.batch)
