"""Count and time what a network costs: parameters, FLOPs, latency and throughput."""

import contextlib
import statistics
import timeit
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from topoprune.passes import batch_size, copied_inputs, explained_call, first_inputs, run, running_copy, tensors_in

TIMING_BLOCKS = 10
"""Blocks of calls; a time is their median."""


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs.

    Attributes:
        parameters: number of parameters.
        flops: multiply-adds of convolutions, linear layers and the products of attention for one input (the convention
            of the pruning literature: VGG-16 at 32x32 has 313 million). Recurrent layers are not counted.
        latency_ms: median milliseconds for a batch of one, or as few as the network takes, see `fewest`.
        images_per_second: inputs a second at the size of the example batch.

    Example:
        >>> from torch import nn
        >>> found = cost(nn.Linear(100, 10), torch.randn(4, 100), seconds=0.01)
        >>> found.parameters, found.flops, found.latency_ms > 0
        (1010, 1000, True)
    """

    parameters: int
    flops: int
    latency_ms: float
    images_per_second: float


def cost(model: nn.Module, example_inputs: Any, seconds: float = 0.2) -> Cost:
    """Parameters, FLOPs and latency of `model` in evaluation mode, measured on a copy.

    Args:
        model: the network; it is timed in the caller's autocast.
        example_inputs: as for `couplings`, on the network's device; their first axis is the batch.
        seconds: how long each of the two timings runs.

    Raises:
        ValueError: the network does not run on the inputs.

    Example:
        >>> from torch import nn
        >>> found = cost(nn.Conv2d(3, 8, 3), torch.randn(4, 3, 10, 10), seconds=0.01)
        >>> found.parameters, found.flops
        (224, 13824)
    """
    batch = batch_size(example_inputs)
    with running_copy(model) as network:
        with torch.inference_mode():
            run(network, example_inputs)
        few = fewest(network, example_inputs)
        one = _median_seconds(network, few, seconds)
        many = one if batch == 1 else _median_seconds(network, example_inputs, seconds)
        multiply_adds = count_flops(network, few)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=multiply_adds,
        latency_ms=1e3 * one,
        images_per_second=batch / many,
    )


def flops(model: nn.Module, example_inputs: Any) -> int:
    """Multiply-adds of one input; on the "meta" device nothing is computed for it.

    Example:
        >>> from torch import nn
        >>> flops(nn.Conv2d(3, 8, 3), torch.randn(4, 3, 10, 10))  # 8 filters of 27 weights at 64 positions
        13824
    """
    with running_copy(model) as network:
        return count_flops(network, fewest(network, example_inputs))


def latency_ms(model: nn.Module, example_inputs: Any, seconds: float = 0.2) -> float:
    """Median milliseconds of one input, or as few as the network takes."""
    with running_copy(model) as network:
        return 1e3 * _median_seconds(network, fewest(network, example_inputs), seconds)


@torch.no_grad()
def fewest(network: nn.Module, inputs: Any) -> Any:
    """The fewest inputs that the network runs on: the first, the first two or all."""
    for count in (1, 2):
        few = first_inputs(inputs, count)
        with contextlib.suppress(ValueError):
            run(network, few)
            return few
    return inputs


def count_flops(network: nn.Module, inputs: Any) -> int:
    """Multiply-adds of each input, by a copy in evaluation mode, which loses its gradients."""
    counter, fused = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused operations of attention
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings(), counter, _Outlines():
            warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # the counter adds hooks
            run(network.requires_grad_(False), inputs)  # the counter cannot follow views that want a gradient
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // (2 * max(1, batch_size(inputs)))  # torch counts a multiply-add as two


class _Outlines(TorchFunctionMode):
    """Skip batch normalisation on the "meta" device, where PyTorch takes it apart in Python, slowly."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.batch_norm and args[0].is_meta and args[1] is not None:
            features, mean = args[:2]
            if features.shape[1] == len(mean):  # otherwise PyTorch says what is wrong
                return torch.empty_like(features)
        return function(*args, **(kwargs or {}))


@torch.inference_mode()
def _median_seconds(network: nn.Module, inputs: Any, seconds: float) -> float:
    # Imported here: it warns of a CUDA toolkit where there is no device, which most commands need not see.
    from torch.utils.benchmark import timer

    inputs = copied_inputs(inputs)
    timed = timeit.Timer(
        f"called(network, {'copied_inputs(inputs)' if _changes(network, inputs) else 'inputs'})",
        globals={"called": explained_call, "copied_inputs": copied_inputs, "network": network, "inputs": inputs},
        timer=timer,  # waits for CUDA
    )
    once = min(timed.repeat(2, 1))  # warms up
    calls = max(1, int(seconds / once))
    blocks = min(calls, TIMING_BLOCKS)
    return statistics.median(timed.repeat(blocks, calls // blocks)) / (calls // blocks)


def _changes(network: nn.Module, inputs: Any) -> bool:
    """Whether a forward pass changes its inputs."""
    used = copied_inputs(inputs)
    explained_call(network, used)
    after, before = [*tensors_in(used)], [*tensors_in(inputs)]
    return len(after) != len(before) or not all(
        a.dtype == b.dtype and (a.is_meta or torch.equal(a, b)) for a, b in zip(after, before, strict=True)
    )
