"""The example inputs on which a network is traced and verified: few, but such that they reach all layers they can."""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from topoprune.cutting import answers_of
from topoprune.passes import (
    batch_size,
    copied,
    each_tensor,
    first_inputs,
    noting_calls,
    run,
    seed_generators,
    some_inputs,
    tensors_in,
)

TOLERANCE = 1e-3
"""Largest difference between a pruned and a masked network, as a share of a tensor's largest value."""

REACHED = 32
"""Example inputs among which some are looked for that reach further layers."""


def prepared(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, list, float]:
    """A copy in evaluation mode and batches of few inputs, in float32 unless the network insists on its own type."""
    floats = _checked_floats(example_inputs)
    # on zeros a layer without a bias gives zeros, whichever filters it has
    noises = (True, False) if floats and not any(x.any() for x in floats) else (False,)
    for noise, single, count in itertools.product(noises, (True, False), (2, None)):
        some = first_inputs(example_inputs, REACHED) if count else example_inputs
        network, some = _variant(model, some, noise, single)
        inputs = first_inputs(some, count) if count else some
        try:
            answers = answers_of(copied(network), inputs)
        except ValueError as error:
            failure = error
            continue
        if not any(name == "" for name, _ in answers):
            raise ValueError(
                f"found no tensor in what {type(model).__name__} returns: return a tensor, or tensors in tuples, "
                "dictionaries or objects"
            )
        if has_values(network) and not any(answer.isfinite().any() for name, answer in answers if not name):
            raise ValueError(
                f"{type(model).__name__} answers with NaN or infinity alone, so that nothing can be verified: pass "
                "finite inputs, or a model whose weights are sound"
            )
        precise = not any(answer.dtype in (torch.float16, torch.bfloat16) for _, answer in answers)
        batches = [inputs, *(_reaching_idle_layers(network, some) if count else ())]
        return network, batches, TOLERANCE if precise else 50 * TOLERANCE
    raise failure


def _reaching_idle_layers(network: nn.Module, inputs: Any) -> Iterator[Any]:
    """Pairs of inputs that call layers which the pairs before them do not call, such as experts that are chosen."""
    if batch_size(inputs) < 3:
        return
    idle = set(idle_modules(network, _called(network, first_inputs(inputs, 2))))
    if not idle or idle.isdisjoint(_called(network, inputs)):
        return
    for start in range(2, batch_size(inputs), 2):
        pair = some_inputs(inputs, start, start + 2)
        if not idle.isdisjoint(new := _called(network, pair)):
            idle -= new
            yield pair


def _called(network: nn.Module, inputs: Any) -> set[str]:
    """Names of the modules that a forward pass calls; those until it fails, if the network takes other inputs."""
    network, called = copied(network), set[str]()
    seed_generators(0)
    with noting_calls(network, called), torch.no_grad(), contextlib.suppress(ValueError):
        run(network, inputs)
    return called


def idle_modules(network: nn.Module, called: Collection[str]) -> list[str]:
    """Modules with weights or running statistics of their own that were not called; attention uses some of its own."""
    attention = [module for module in network.modules() if isinstance(module, nn.MultiheadAttention)]
    inside = {part for module in attention for part in module.modules()}
    return [
        name
        for name, module in network.named_modules()
        if name not in called and module not in inside and (module._parameters or isinstance(module, _NormBase))
    ]


def _checked_floats(example_inputs: Any) -> list[Tensor]:
    """The floating-point tensors of inputs on which something can be verified."""
    if any(tensor.ndim and not len(tensor) for tensor in tensors_in(example_inputs)):
        raise ValueError("the example inputs are an empty batch: pass at least one input")
    floats = [x for x in tensors_in(example_inputs) if x.is_floating_point() and not x.is_meta]
    if any(x.isnan().any() for x in floats):
        raise ValueError("the example inputs hold NaN, on which nothing can be verified: pass inputs without it")
    return floats


def _variant(model: nn.Module, inputs: Any, noise: bool, single: bool) -> tuple[nn.Module, Any]:
    """A copy of a network and its inputs: with noise for their values, and in float32, where that is asked."""
    network = copied(model).eval().requires_grad_(False)
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        tensor.data = _in_usual_layout(tensor.data)
    inputs = each_tensor(inputs, _in_usual_layout)
    if noise:
        seed_generators(0)
        inputs = each_tensor(inputs, lambda x: torch.rand_like(x) if x.is_floating_point() else x)
    if not single:
        return network, inputs
    return network.float(), each_tensor(inputs, lambda x: x.float() if x.is_floating_point() else x)


def _in_usual_layout(tensor: Tensor) -> Tensor:
    """Without channels_last, in which PyTorch computes some layers by views that cannot be followed."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    return tensor.contiguous() if layout and tensor.is_contiguous(memory_format=layout) else tensor


def passes_of(network: nn.Module, batches: list) -> Iterator[Callable[[nn.Module], Any]]:
    """A pass in evaluation mode for each batch, and one in training mode if some layers run only there."""
    called: set[str] = set()

    def evaluate(model: nn.Module, inputs: Any) -> Any:
        seed_generators(0)
        with noting_calls(model, called):
            return run(model, inputs)

    def train(model: nn.Module) -> Any:
        with contextlib.suppress(ValueError):  # it does not train on these inputs: what runs only there stays whole
            return run(model.train(), batches[0])

    for inputs in batches:
        yield partial(evaluate, inputs=inputs)
    if idle_modules(network, called):  # such as auxiliary classifiers
        yield train


def has_values(network: nn.Module) -> bool:
    """Whether there is anything to compare: a network on the "meta" device has shapes alone."""
    return not any(parameter.is_meta for parameter in network.parameters())
