"""Find the filters of a network that must go together, and remove them for real.

What belongs together is read from forward passes (`topoprune.channels`) and then verified: removing filters must
give the answers of the network in which the layers that read these channels have zeros in their place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from topoprune.channels import Channels, trace
from topoprune.compensation import check_images, refit, to_refit
from topoprune.coupling import LAYERS, Coupling, Kept, couplings_of, integers, widths
from topoprune.cutting import (
    Removed,
    find_difference,
    find_training_failure,
    find_unsound,
    some_choices,
    without,
)
from topoprune.examples import has_values, idle_modules, passes_of, prepared
from topoprune.passes import (
    copied,
    plain_tensors,
    unwrapped,
)


class PruningWarning(UserWarning):
    """A layer is left whole, or few inputs describe its channels; the message says which and why.

    Example:
        >>> import warnings
        >>> from topoprune import select
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     kept = select(model, torch.randn(2, 3, 12, 12), "l1")
        >>> print(told[0].message)
        left whole: 0 because native_group_norm in 1 mixes its channels
    """


@dataclass(frozen=True)
class Structure:
    """What `structure` found.

    Attributes:
        couplings: filters that can be removed, in the order of the modules.
        left_whole: layer -> why it keeps all its filters.
        norms: layer -> its BatchNorm, which alone reads its output and reads nothing else.
        idle: other modules with weights that did not run. They keep their shape, whatever goes before them.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
        >>> found = structure(model, torch.randn(2, 3, 8, 8))
        >>> found.norms, found.left_whole
        ({'0': '1'}, {'2': 'its channels are an output of the network'})
    """

    couplings: list[Coupling]
    left_whole: dict[str, str]
    norms: dict[str, str]
    idle: list[str]


def couplings(model: nn.Module, example_inputs: Any, check: bool = True) -> list[Coupling]:
    """The prunable filters of a network, joined where they can only be removed together.

    Args:
        model: any network with `nn.Conv2d` layers; it is untouched.
        example_inputs: what `forward` takes: a tensor, a tuple of positional or a dict of named arguments; they are
            untouched. Their first axis is the batch, except for scalars and tensors whose first axis has length 1.
        check: verify each coupling, see `structure`.

    Raises:
        ValueError: the network does not run on the inputs, or nothing in it can be pruned.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> [coupling.layers for coupling in couplings(model, torch.randn(2, 3, 8, 8))]  # the last one answers
        [('0',)]
    """
    return structure(model, example_inputs, check=check).couplings


def structure(
    model: nn.Module, example_inputs: Any, types: tuple[type, ...] = (nn.Conv2d,), check: bool = True
) -> Structure:
    """Couplings of a network, and the layers that must stay whole.

    Args:
        model, example_inputs: as for `couplings`.
        types: a coupling has a layer of one of these types.
        check: remove some filters of every coupling from a copy, in float32 and evaluation mode, and compare with the
            network whose readers of these channels have zeros. A coupling that differs is left whole, and so is one
            without which the network no longer runs in training mode. Two example inputs serve, or more if they reach
            further layers; noise, if they are all zero.

    Raises:
        ValueError: as `couplings`, for weights that are not finite, and for a type that is no convolution or linear
            layer.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))
        >>> found = structure(model, torch.randn(2, 3, 8, 8))
        >>> [coupling.layers for coupling in found.couplings], found.left_whole["0"]
        ([('2',)], 'native_group_norm in 1 mixes its channels')
    """
    if not all(isinstance(one, type) and issubclass(one, LAYERS) for one in types):
        raise ValueError(f"types must be types of layers, as (nn.Conv2d, nn.Linear), got {types!r}")
    inner, prefix = unwrapped(model)
    _refuse_computed_weights(inner, prefix)
    _refuse_damaged_weights(inner, prefix)
    with plain_tensors():
        network, batches, tolerance = prepared(inner, example_inputs)
        channels = trace(copied(network), passes_of(network, batches))
        found = couplings_of(network, channels, types)
        unsound = _unsound(found, network, batches, tolerance) if check and has_values(network) else {}
    unsound |= {coupling: reason for coupling in found if (reason := _only_together(coupling))}
    sound = [coupling for coupling in found if coupling not in unsound]
    reasons = {layer: reason for coupling, reason in unsound.items() for layer in coupling.layers}
    left = _left_whole(network, channels, types, sound, reasons)
    if not any(isinstance(module, types) for module in network.modules()):
        raise ValueError(
            f"nothing to prune: {type(inner).__name__} has no {' or '.join(t.__name__ for t in types)} layer; "
            "pass a convolutional network, or name other types"
        )
    if not sound:
        layer, reason = next(iter(left.items()))
        raise ValueError(f"nothing to prune: every layer must stay whole, {prefix}{layer} because {reason}")
    return Structure(
        [_renamed(coupling, prefix) for coupling in sound],
        {prefix + layer: reason for layer, reason in left.items()},
        {prefix + layer: prefix + norm for layer, norm in channels.follows.items()},
        [prefix + name for name in idle_modules(network, channels.called) if name not in left],
    )


def _unsound(found: list[Coupling], network: nn.Module, batches: list, tolerance: float) -> dict[Coupling, str]:
    """Each coupling that changes the answers, or stops the network from training -> how."""

    def answers(tested: list[Coupling]) -> str | None:
        return find_difference(network, batches, some_choices(tested), tolerance)

    def training(tested: list[Coupling]) -> str | None:
        return find_training_failure(network, batches, some_choices(tested))

    unsound = find_unsound(found, answers)
    return unsound | find_unsound([coupling for coupling in found if coupling not in unsound], training)


def remove(
    model: nn.Module,
    example_inputs: Any,
    kept: Mapping[str, Sequence[int] | np.ndarray | Tensor],
    check: bool = True,
    compensate: Any = None,
    compensation: str = "convolution",
) -> nn.Module:
    """A new network without the filters that `kept` leaves out; `model` is untouched.

    Args:
        model, example_inputs: as for `couplings`.
        kept: layer -> indices of the filters to keep, as `select` returns it: integers, no mask. Layers that are not
            named lose only what is coupled to a layer that is.
        check: compare the answers with those of the network whose readers of the removed channels have zeros.
        compensate: images without labels, inputs of `forward` or batches of them. The layers that read removed
            channels are refitted on them, see `compensation.refit`, and every BatchNorm is recalibrated.
        compensation: "convolution" refits all weights of such a layer, "channels" mixes its input channels and needs
            fewer images.

    Raises:
        ValueError: an unknown layer, an empty or impossible choice, coupled layers that disagree, a network that
            answers differently, or images too few or unfit to compensate with.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> remove(model, torch.randn(2, 3, 8, 8), {"0": [1, 2, 5]})[0]
        Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1))
    """
    check_images(compensate, compensation)
    inner, prefix = unwrapped(model)
    _refuse_computed_weights(inner, prefix)
    with plain_tensors():
        network, batches, tolerance = prepared(inner, example_inputs)
        channels, removed = _to_remove(network, batches, kept, prefix)
        if check and has_values(network):
            _check_answers(network, batches, removed, tolerance, prefix)
        small = without(model, removed)
        if compensate is not None and removed:
            refit(network, unwrapped(small)[0], removed, compensate, compensation, channels.follows, batches[0])
        return small


def _check_answers(network: nn.Module, batches: list, removed: Removed, tolerance: float, prefix: str) -> None:
    """Refuse choices whose removal changes the answers, naming the layers."""

    def differs(tested: list[Coupling]) -> str | None:
        return find_difference(network, batches, {c: removed[c] for c in tested}, tolerance)

    for coupling, reason in find_unsound(list(removed), differs).items():
        layers = ", ".join(prefix + layer for layer in coupling.layers)
        raise ValueError(
            f"these filters cannot be removed from {layers}: {reason}; choose them with topoprune.select, which leaves "
            "such layers whole, or leave this one out by ignore="
        )


def check_refit(model: nn.Module, example_inputs: Any, kept: Kept, images: Any, mode: str) -> None:
    """Refuse images on which `remove` could not refit what reads the filters that `kept` leaves out.

    Args:
        model, example_inputs, kept, images, mode: as `model`, `example_inputs`, `kept`, `compensate` and
            `compensation` of `remove`.

    Raises:
        ValueError: as `compensation.refit`.
    """
    inner, prefix = unwrapped(model)
    with plain_tensors():
        network, batches, _ = prepared(inner, example_inputs)
        channels, removed = _to_remove(network, batches, kept, prefix)
        to_refit(network, removed, images, mode, channels.follows, batches[0])


def _to_remove(network: nn.Module, batches: list, kept: Mapping, prefix: str) -> tuple[Channels, Removed]:
    """The channels of a network, and the choices of its couplings that `kept` leaves out."""
    channels = trace(copied(network), passes_of(network, batches))
    named = {layer.removeprefix(prefix): integers(layer, chosen) for layer, chosen in kept.items()}
    return channels, _removed(named, network, couplings_of(network, channels, LAYERS))


def _refuse_computed_weights(model: nn.Module, prefix: str) -> None:
    """Refuse what cannot be cut: a weight must be a parameter of its layer."""
    for name, module in model.named_modules():
        what = f"{prefix}{name or type(model).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{what} is TorchScript: prune the nn.Module it was made from, then script the result")
        if "quantized" in type(module).__module__ and type(module).__module__.startswith("torch."):
            raise ValueError(f"{what} is quantised: prune the float network, then quantise the result")
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{what} has a parametrized {next(iter(module.parametrizations))}: make it a plain parameter with "
                "torch.nn.utils.parametrize.remove_parametrizations, then prune"
            )
        if isinstance(module, LAYERS) and not isinstance(module._parameters.get("weight"), nn.Parameter):
            cure = "prune.remove" if "weight_mask" in module._buffers else "remove_weight_norm or remove_spectral_norm"
            raise ValueError(f"{what} computes its weight in a hook: call torch.nn.utils.{cure}, then prune")


def _refuse_damaged_weights(model: nn.Module, prefix: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and not module.weight.is_meta and not module.weight.isfinite().all():
            raise ValueError(
                f"{prefix}{name} has values that are NaN or infinite: the model is damaged or diverged in training; "
                "load a sound checkpoint"
            )


def _only_together(coupling: Coupling) -> str:
    """Why a coupling of several filters leaves no choice; empty if it leaves one."""
    most = max(filters.shape[1] for filters in coupling.members.values())
    return f"its {most} filters can only go together" if coupling.choices == 1 < most else ""


def _left_whole(
    network: nn.Module, channels: Channels, types: tuple[type, ...], sound: list[Coupling], reasons: dict[str, str]
) -> dict[str, str]:
    """Layer of `types` -> why some of its filters can never be removed."""
    free = {layer for coupling in sound for layer in coupling.layers}
    weights = {name: id(module.weight) for name, module in network.named_modules() if isinstance(module, LAYERS)}
    traced = {id(x): name for name, x in network.named_parameters()}  # a tied weight has the name of its first layer
    pruned = {weights[layer] for layer in free}  # also of a layer whose weight is tied to another's
    left = {}
    for name, module in network.named_modules():
        if isinstance(module, types) and weights[name] not in pruned:
            written = [axis for axis in channels.writers if axis.name == traced[weights[name]]]
            axes = written or [axis for axis in channels.start if axis.name == traced[weights[name]]]
            fixed = [channels.fixed.get(c) for axis in axes for c in channels.components(axis).tolist()]
            why = reasons.get(name) or next((reason for reason in fixed if reason), None)
            left[name] = why or ("it is joined to another kind of layer" if written else "it did not run on the inputs")
    return left


def _removed(kept: Kept, network: nn.Module, every: list[Coupling]) -> dict[Coupling, np.ndarray]:
    """The choices that `kept` leaves out of each coupling; refuse what cannot be done."""
    sizes = widths(network)
    _check_kept(kept, sizes)
    gone = {layer: set(range(sizes[layer])) - set(chosen) for layer, chosen in kept.items()}
    removed = {}
    for coupling in every:
        named = [layer for layer in coupling.layers if layer in kept]
        lost = {layer: np.isin(coupling.members[layer], list(gone[layer])) for layer in named}
        _check_agreement(coupling, lost)
        if named and lost[named[0]].all(1).any():
            removed[coupling] = np.flatnonzero(lost[named[0]].all(1))
        for layer in named:
            gone[layer] -= set(coupling.members[layer].ravel().tolist())
    for layer, filters in gone.items():
        if filters:
            raise ValueError(
                f"{layer} must keep filter {min(filters)}: its channel cannot be removed; topoprune.select keeps "
                "such filters"
            )
    return removed


def _check_kept(kept: Kept, sizes: dict[str, int]) -> None:
    """Refuse unknown layers and filters, and layers that would keep none."""
    for layer, chosen in kept.items():
        if layer not in sizes:
            raise ValueError(f"unknown layer {layer!r}: the prunable layers are {', '.join(sizes)}")
        if not chosen:
            raise ValueError(f"{layer} would keep no filter: every layer keeps at least one")
        if outside := sorted(set(chosen) - set(range(sizes[layer]))):
            raise ValueError(f"{layer} has filters 0 to {sizes[layer] - 1}, got {outside}")


def _check_agreement(coupling: Coupling, lost: dict[str, np.ndarray]) -> None:
    """Refuse layers that would lose a part of a choice, or other choices than the layers that share them.

    Args:
        lost: layer -> (choices, m) whether a filter is lost, as `Coupling.members`.
    """
    for layer, rows in lost.items():
        if (rows.any(1) != rows.all(1)).any():
            one = coupling.members[layer][(rows.any(1) != rows.all(1)).argmax()].tolist()
            raise ValueError(f"{layer} must keep or lose the filters {one} together: a grouped layer has equal groups")
        first = next(iter(lost))
        if (rows.all(1) != lost[first].all(1)).any():
            raise ValueError(f"{first} and {layer} share their channels: give both the same filters to keep")


def _renamed(coupling: Coupling, prefix: str) -> Coupling:
    members = {prefix + layer: rows for layer, rows in coupling.members.items()}
    sizes = {prefix + layer: size for layer, size in coupling.sizes.items()}
    return Coupling(members, sizes, coupling.slices, coupling.readers, coupling.norms)
