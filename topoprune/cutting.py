"""Cut filters out of a copy of a network, and check that the answers are those of the network that masks them."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topoprune.channels import Axis
from topoprune.coupling import Coupling
from topoprune.passes import copied, each_tensor, one_line, run, seed_generators, tensors_in, unwrapped


def without(model: nn.Module, removed: dict[Coupling, np.ndarray]) -> nn.Module:
    """A copy of the network that lacks some choices of its couplings, which are positions in `Coupling.members`."""
    small = copied(model)
    _cut(unwrapped(small)[0], removed)
    for module in small.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module.__setstate__(module.__getstate__())  # it reduced the gradients of the parameters before
    return small


def find_unsound(
    couplings: list[Coupling],
    network: nn.Module,
    inputs: Any,
    tolerance: float,
    base: tuple[Coupling, ...] = (),
    exact: bool = False,
) -> dict[Coupling, str]:
    """Each coupling whose removal changes the answers -> how, found by halving; `base` is known to be sound.

    Where the answers differ, float64 decides, unless the inputs are `exact` already.
    """
    tested = [coupling for coupling in (*base, *couplings) if coupling.choices > 1]
    generator = np.random.default_rng(0)
    removed = {c: generator.permutation(c.choices)[: max(1, c.choices // 3)] for c in tested}
    if not couplings or (reason := find_difference(network, inputs, removed, tolerance)) is None:
        return {}
    if not exact:
        return find_unsound(couplings, *in_float64(network, inputs), tolerance, exact=True)
    if len(couplings) == 1:
        return {couplings[0]: reason}
    half = len(couplings) // 2
    first = find_unsound(couplings[:half], network, inputs, tolerance, base, exact)
    base = (*base, *(coupling for coupling in couplings[:half] if coupling not in first))
    return first | find_unsound(couplings[half:], network, inputs, tolerance, base, exact)


def in_float64(network: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """The network and its inputs in float64, or both as they are if the network does not run in it.

    Rounding can change what a network picks, such as the boxes of the largest scores, and all that follows.
    """
    exact = copied(network).double()
    same = each_tensor(inputs, lambda x: x.double() if x.is_floating_point() else x)
    try:
        answers_of(copied(exact), same)
    except ValueError:
        return network, inputs
    return exact, same


def find_difference(
    network: nn.Module, inputs: Any, removed: dict[Coupling, np.ndarray], tolerance: float
) -> str | None:
    """How the network without some filters differs from the one that masks them; None if it does not."""
    if not removed:
        return None
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


def _cut(network: nn.Module, removed: dict[Coupling, np.ndarray]) -> None:
    """Cut the slices of the removed choices out of all parameters and buffers, in place."""
    away: dict[Axis, list[np.ndarray]] = {}
    for coupling, gone in removed.items():
        for name, (choices, _) in coupling.norms.items():
            norm: Any = network.get_submodule(name)
            norm.num_features -= int(np.isin(choices, gone).sum())
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
