"""Cut filters out of a copy of a network, and check that the answers are those of the network that masks them."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoprune.channels import Axis
from topoprune.coupling import Coupling
from topoprune.passes import copied, each_tensor, one_line, run, seed_generators, tensors_in, unwrapped

Removed = dict[Coupling, np.ndarray]
"""Coupling -> the choices that are removed, which are positions in `Coupling.members`."""


def without(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy of the network that lacks some choices of its couplings."""
    small = copied(model)
    _cut(unwrapped(small)[0], removed)
    for module in small.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module.__setstate__(module.__getstate__())  # it reduced the gradients of the parameters before
    return small


def find_unsound(
    couplings: list[Coupling],
    differs: Callable[[list[Coupling]], str | None],
    base: tuple[Coupling, ...] = (),
) -> dict[Coupling, str]:
    """Each coupling whose removal changes something -> what, found by halving.

    Args:
        couplings: to try.
        differs: what the removal of some choices of these couplings changes; None if nothing.
        base: couplings that are known to be sound, and go as well.
    """
    tested = [coupling for coupling in (*base, *couplings) if coupling.choices > 1]
    if not couplings or (reason := differs(tested)) is None:
        return {}
    if len(couplings) == 1:
        return {couplings[0]: reason}
    half = len(couplings) // 2
    first = find_unsound(couplings[:half], differs, base)
    base = (*base, *(coupling for coupling in couplings[:half] if coupling not in first))
    return first | find_unsound(couplings[half:], differs, base)


def some_choices(couplings: list[Coupling]) -> Removed:
    """A third of the choices of each coupling, drawn at random, but not as many from each of several equal parts."""
    generator = np.random.default_rng(0)
    removed = {}
    for coupling in couplings:
        gone = np.arange(0)
        while not _is_uneven(gone, coupling.choices):
            gone = generator.permutation(coupling.choices)[: max(1, coupling.choices // 3)]
        removed[coupling] = gone
    return removed


def _is_uneven(gone: np.ndarray, choices: int) -> bool:
    """Whether equal parts of the choices lose different numbers: if they do not, code that slices them runs by luck.

    Halves differ by two where they can, because one more or less is lost in rounding.
    """
    parts = [count for count in range(2, choices // 2 + 1) if choices % count == 0]
    spread = {count: np.ptp(np.bincount(gone * count // choices, minlength=count)) for count in parts}
    least = {count: min(2 if count == 2 else 1, len(gone)) for count in parts}
    return len(gone) > 0 and all(spread[count] >= least[count] for count in parts)


def find_difference(network: nn.Module, batches: list, removed: Removed, tolerance: float) -> str | None:
    """How the network without some filters differs from the one that masks them; None if it does not.

    Where the answers differ, float64 decides: rounding can change what a network picks, such as the boxes of the
    largest scores, and all that follows.
    """
    for inputs in batches if removed else ():
        if _difference(network, inputs, removed, tolerance):
            if reason := _difference(*_in_float64(network, inputs), removed, tolerance):
                return reason
    return None


def find_training_failure(network: nn.Module, batches: list, removed: Removed) -> str | None:
    """Why the network without some filters fails in training mode; None if it does not, or the whole network does."""
    if not removed:
        return None
    small = copied(network)
    _cut(small, removed)
    for inputs in batches:
        try:
            expected = _shapes_in_training(network, inputs)
        except ValueError:  # it wants other inputs to train
            continue
        try:
            shapes = _shapes_in_training(small, inputs)
        except ValueError as error:
            cause = one_line(error.__cause__ or error)
            return f"in training mode the network no longer runs without some of its filters ({cause})"
        if shapes != expected:
            return "in training mode the outputs change their shape without some of its filters"
    return None


def _shapes_in_training(network: nn.Module, inputs: Any) -> list[torch.Size]:
    seed_generators(0)
    with torch.no_grad():
        return [tensor.shape for tensor in tensors_in(run(copied(network).train(), inputs))]


def _in_float64(network: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """The network and its inputs in float64, or both as they are if the network does not run in it."""
    exact = copied(network).double()
    same = each_tensor(inputs, lambda x: x.double() if x.is_floating_point() else x)
    try:
        answers_of(copied(exact), same)
    except ValueError:
        return network, inputs
    return exact, same


def _difference(network: nn.Module, inputs: Any, removed: Removed, tolerance: float) -> str | None:
    """As `find_difference`, on one batch and without a second look."""
    masked, small = copied(network), copied(network)
    for coupling, gone in removed.items():
        _mask(masked, coupling, gone)
    _cut(small, removed)
    try:
        answers = answers_of(small, inputs)
    except ValueError as error:
        return f"the network no longer runs without some of its filters ({one_line(error.__cause__ or error)})"
    wanted = answers_of(masked, inputs)
    if [name for name, _ in wanted] != [name for name, _ in answers]:
        return "the network calls other layers without some of its filters"
    for (name, expected), (_, answer) in zip(wanted, answers, strict=True):
        if answer.shape != expected.shape:
            if name == "":
                return f"an output of shape {tuple(expected.shape)} becomes {tuple(answer.shape)}"
        elif not _close(answer, expected, tolerance):
            if not expected.isfinite().all():
                return f"the answers of {name or 'the network'} are partly NaN or infinite"
            return f"the answers of {name or 'the network'} change where they should not"
    return None


def answers_of(network: nn.Module, inputs: Any) -> list[tuple[str, Tensor]]:
    """The output of every layer and of the network (its name is empty), in the order of the calls."""
    found: list[tuple[str, Tensor]] = []
    seed_generators(0)
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            if name and not any(True for _ in module.children()):
                hooks.enter_context(
                    module.register_forward_hook(
                        lambda _m, _i, output, name=name: found.extend((name, x) for x in tensors_in(output))
                    )
                )
        output = run(network, inputs)
    return [*found, *(("", tensor) for tensor in tensors_in(output))]


def _close(answer: Tensor, expected: Tensor, tolerance: float) -> bool:
    answer, expected = answer.double(), expected.double()
    if not answer.numel() or not torch.equal(answer.isfinite(), expected.isfinite()):
        return answer.numel() == expected.numel() == 0
    answer, expected = (torch.nan_to_num(x, 0, 0, 0) for x in (answer, expected))
    return bool((answer - expected).abs().max() <= tolerance * expected.abs().max() + 1e-12)


def _mask(network: nn.Module, coupling: Coupling, gone: np.ndarray) -> None:
    """Zero what reads the channels of some choices."""
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    for axis in coupling.readers:
        away = torch.as_tensor(coupling.lost(axis, gone), device=tensors[axis.name].device)
        tensors[axis.name].data.index_fill_(axis.dim, away, 0)


def _cut(network: nn.Module, removed: Removed) -> None:
    """Cut the slices of the removed choices out of all parameters and buffers, in place."""
    away: dict[Axis, list[np.ndarray]] = {}
    for coupling, gone in removed.items():
        for name, (choices, _) in coupling.norms.items():
            norm: Any = network.get_submodule(name)
            lost = int(np.isin(choices, gone).sum())
            if isinstance(norm, nn.GroupNorm):
                norm.num_groups = norm.num_channels = norm.num_channels - lost
            else:
                norm.num_features -= lost
        for axis in coupling.slices:
            away.setdefault(axis, []).append(coupling.lost(axis, gone))
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    new: dict[int, Tensor] = {}
    for axis, indices in away.items():
        old = tensors[axis.name]
        rest = np.delete(np.arange(old.shape[axis.dim]), np.concatenate(indices))
        value = new.get(id(old), old).detach()
        new[id(old)] = value.index_select(axis.dim, torch.as_tensor(rest, device=value.device))
    # one replacement for each tensor: tied weights stay tied
    replacements = {id(old): _like(new[id(old)], old) for old in tensors.values() if id(old) in new}
    for module in network.modules():
        stores: tuple[dict, ...] = (module._parameters, module._buffers)
        for store in stores:
            store.update({name: replacements[id(old)] for name, old in store.items() if id(old) in replacements})
        _set_sizes(module)


def _like(value: Tensor, old: Tensor) -> Tensor:
    if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _set_sizes(module: Any) -> None:
    """Set a layer's numbers of channels to those of its weight."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed:
            if module.groups == module.in_channels == module.out_channels > 1:  # depthwise
                module.groups = weight.shape[0]
            module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
        else:
            if module.groups == module.in_channels > 1:  # depthwise
                module.groups = weight.shape[0] // (module.out_channels // module.groups)
            module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vector = next((x for x in (weight, module.running_mean) if x is not None), None)
        module.num_features = module.num_features if vector is None else len(vector)
    elif isinstance(module, nn.GroupNorm) and weight is not None and module.num_groups == module.num_channels:
        module.num_groups = module.num_channels = len(weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
