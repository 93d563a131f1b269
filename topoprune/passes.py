"""Run a network and leave the caller's network, inputs, modes and random numbers as they are."""

import contextlib
import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves, tree_map

BATCH = 128
"""Inputs of one forward pass."""


def tensors_in(value: Any, depth: int = 8) -> Iterator[Tensor]:
    """Every tensor in nested collections, mappings and objects, with or without `__slots__`."""
    if isinstance(value, Tensor):
        yield value
    elif depth:
        for part in _parts(value):
            yield from tensors_in(part, depth - 1)


def _parts(value: Any) -> Iterable:
    """What a mapping, a collection or an object holds; nothing of a type or a module."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return value
    if isinstance(value, (type, nn.Module)):
        return ()
    named = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    slots = [name for names in named for name in ([names] if isinstance(names, str) else names)]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


def run(model: nn.Module, inputs: Any) -> Any:
    """The output for a tensor, a tuple of positional or a dict of named arguments, outside the caller's autocast.

    The network gets copies without gradients, which it may change.

    Raises:
        ValueError: naming the inputs that the network does not take.
    """
    with _without_autocast():
        return explained_call(model, copied_inputs(inputs))


def explained_call(model: nn.Module, inputs: Any) -> Any:
    """As `call`, with one error that says which inputs the network refuses."""
    try:
        return call(model, inputs)
    except Exception as error:  # whatever the network's own forward raises
        raise ValueError(f"{type(model).__name__} does not run on {_refusal(inputs, error)}") from error


def call(model: nn.Module, inputs: Any) -> Any:
    """The output for a tensor, a tuple of positional or a dict of named arguments, with errors as they are raised."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _refusal(inputs: Any, error: Exception) -> str:
    """Which inputs a network refuses, and the cure."""
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))
    others = {type(leaf).__name__ for leaf in tree_leaves(inputs) if not shapes or isinstance(leaf, np.ndarray)}
    if others:
        return (
            f"inputs of type {', '.join(sorted(others))}: pass a tensor, a tuple of positional or a dict of named "
            "arguments; torch.from_numpy makes a tensor of an array"
        )
    return f"example inputs of shape {shapes}: {one_line(error)}; check their shape, type and device"


def one_line(error: BaseException) -> str:
    """Type and message of an error, at most 300 letters of them."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; PyTorch's default device for a network without any."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, then restore the mode of each."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def noting_calls(model: nn.Module, called: set[str]) -> Iterator[None]:
    """Add the name of every module that is called to a set."""
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(lambda *_, name=name: called.add(name)))
        yield


@contextlib.contextmanager
def running_copy(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in evaluation mode; running it changes neither the network nor the caller's random numbers."""
    with undisturbed():
        yield copied(model).eval()


@contextlib.contextmanager
def eager_copy(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """A copy of the network in evaluation mode, and the prefix of its names in `model`.

    What runs inside changes neither the network nor the caller's random numbers. Compiled parts run as they were
    written, because hooks that are added after compilation do not fire.
    """
    inner, prefix = unwrapped(model)
    with running_copy(inner) as network, torch.compiler.set_stance("force_eager"):
        yield network, prefix


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Work outside the caller's inference mode and random numbers."""
    with torch.inference_mode(False), _forked_random_numbers():
        yield


@contextlib.contextmanager
def plain_tensors() -> Iterator[None]:
    """Work outside the caller's inference mode, autocast, compiler and random numbers, and without warnings."""
    eager = torch.compiler.set_stance("force_eager")  # compiled code cannot be followed
    with undisturbed(), _without_autocast(), eager, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the network's own forward
        with _without_tf32():
            yield


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Leave the caller's autocast on every kind of device."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Full float32 on CUDA: in TF32 two ways to compute the same differ by as much as `examples.TOLERANCE` allows."""
    cudnn: Any = torch.backends.cudnn  # its stubs lack `conv`
    settings = cudnn.conv, torch.backends.cuda.matmul
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def seed_generators(number: int) -> None:
    """Seed the random numbers that `_forked_random_numbers` restores; `torch.manual_seed` seeds others as well."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


def _forked_random_numbers() -> contextlib.AbstractContextManager[None]:
    """Restore the random numbers of the CPU, and those of CUDA where it is in use."""
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


def check_model(model: Any) -> None:
    """Refuse what is no network, and lazy layers without weights."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, got {type(model).__name__}: build the network first")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            layer = name.rpartition(".")[0] or type(model).__name__
            raise ValueError(f"{layer} has no weights yet: run the network once on example inputs, then prune")


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors that a module has stored in an earlier pass lose their graph."""
    check_model(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        stored = [value for value in vars(module).values() if not isinstance(value, dict) or value]
        for value in tree_leaves([stored, dict(module._buffers)]):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module holds that cannot be copied
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {one_line(error)}; remove attributes that cannot be copied"
        ) from error


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The network in DataParallel or torch.compile, and the prefix of its names."""
    check_model(model)
    inner, prefix = model, ""
    while True:
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner, prefix = inner.module, f"{prefix}module."
        elif isinstance(inner, torch._dynamo.OptimizedModule):
            inner, prefix = inner._orig_mod, f"{prefix}_orig_mod."
        else:
            return inner, prefix


def copied_inputs(inputs: Any) -> Any:
    """Copies without gradients, which a network may change."""
    return each_tensor(inputs, lambda tensor: tensor.detach().clone())


def each_tensor(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Inputs with `change` applied to every tensor. Objects that hold tensors are copied."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else _changed(leaf, change), inputs)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    memo = {id(tensor): change(tensor) for tensor in tensors_in(value)}
    return copy.deepcopy(value, memo) if memo else value


def batch_size(inputs: Any) -> int:
    """The length of the first axis of the first input, if the others share it; 1 if they do not.

    Scalars, and later inputs whose first axis has length 1, have no part in the batch.

    Example:
        >>> batch_size((torch.ones(240, 3, 8, 8), torch.tensor(0.5), torch.ones(1, 4))), batch_size(torch.ones(1, 3))
        (240, 1)
        >>> batch_size((torch.ones(240, 3, 8, 8), torch.ones(7)))  # no batch
        1
    """
    lengths = [len(tensor) for tensor in tensors_in(inputs) if tensor.ndim]
    return lengths[0] if lengths and {*lengths[1:]} <= {lengths[0], 1} else 1


def first_inputs(inputs: Any, count: int) -> Any:
    """The first inputs of a batch. Inputs that are no batch are returned whole."""
    return some_inputs(inputs, 0, count)


def some_inputs(inputs: Any, start: int, stop: int) -> Any:
    """A part of a batch; tensors that have no part in the batch stay whole.

    Example:
        >>> [tensor.shape for tensor in some_inputs((torch.ones(240, 3), torch.ones(1, 4)), 10, 12)]
        [torch.Size([2, 3]), torch.Size([1, 4])]
    """
    size = batch_size(inputs)
    return each_tensor(inputs, lambda x: x[start:stop] if x.ndim and len(x) == size > 1 else x)


def seeded_parts(inputs: Any, size: int = BATCH) -> Iterator[Any]:
    """Parts of a batch. Each seeds the random numbers, so that a network that draws some draws the same every time."""
    for start in range(0, batch_size(inputs), size):
        seed_generators(start)
        yield some_inputs(inputs, start, start + size)
