"""Find the filters that must go together, remove them for real, and count what a network costs.

What belongs together is read from forward passes (`topoprune.channels`) and then verified: removing filters must
give the answers of the network in which the layers that read these channels have zeros in their place.
"""

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from topoprune.channels import Axis, Channels, Writer, tensors_in, trace

Kept = dict[str, list[int]]
"""Layer name -> sorted indices of its kept filters."""

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
"""Layers whose filters (output channels) can be removed."""

TOLERANCE = 1e-3
"""Largest difference between a pruned and a masked network, as a share of a tensor's largest value."""


class PruningWarning(UserWarning):
    """A layer is left whole; the message says which and why.

    Example:
        >>> from topoprune import select
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     kept = select(model, torch.randn(2, 3, 12, 12), "l1")
        >>> print(told[0].message)
        left whole: 0 because native_group_norm in 1 mixes its channels
    """


@dataclass(frozen=True, eq=False)
class Coupling:
    """Filters that can only be removed together.

    Each of its `choices` is removed or kept as one: one filter of an ordinary convolution, one of each layer that a
    residual addition joins, the same position of every group of a grouped convolution.

    Attributes:
        members: layer -> (choices, m) indices of its filters that go with each choice, the first layer first.
        sizes: layer -> number of all of its filters.
        slices: axis of a parameter or buffer -> (2, k) rows of choices and of the indices that go with them.
        readers: those of the axes that belong to weights which read the channels.
        norms: normalisation without parameters or buffers -> (2, k) rows, as in `slices`.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 3))
        >>> first = couplings(model, torch.randn(2, 3, 12, 12))[0]
        >>> first.layers, first.choices
        (('0',), 4)
        >>> first.filters("0", [1])  # the same position of both groups
        [1, 5]
    """

    members: dict[str, np.ndarray]
    sizes: dict[str, int]
    slices: dict[Axis, np.ndarray]
    readers: frozenset[Axis]
    norms: dict[str, np.ndarray]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that write the channels, in the order of the modules."""
        return tuple(self.members)

    @property
    def choices(self) -> int:
        """How many independent decisions to keep or to remove there are."""
        return len(next(iter(self.members.values())))

    def filters(self, layer: str, chosen: Sequence[int] | np.ndarray) -> list[int]:
        """Sorted filters of a layer that go with the `chosen` choices."""
        return sorted(self.members[layer][_integers(layer, chosen)].ravel().tolist())

    def positions(self, kept: Kept) -> list[int]:
        """The choices whose filters are all kept; a layer that `kept` does not name keeps all."""
        stays = [np.isin(self.members[x], _integers(x, kept[x])).all(1) for x in self.layers if x in kept]
        return np.flatnonzero(np.all(stays, axis=0)).tolist() if stays else list(range(self.choices))


@dataclass(frozen=True)
class Structure:
    """What `structure` found.

    Attributes:
        couplings: filters that can be removed, in the order of the modules.
        left_whole: layer -> why it keeps all its filters.
        norms: layer -> its BatchNorm, which alone reads its output and reads nothing else.

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
        check: remove some filters of every coupling from a copy, on the example inputs, in float32 and evaluation
            mode, and compare with the network whose readers of these channels have zeros. A coupling that differs
            is left whole.

    Raises:
        ValueError: as `couplings`.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))
        >>> found = structure(model, torch.randn(2, 3, 8, 8))
        >>> [coupling.layers for coupling in found.couplings], found.left_whole["0"]
        ([('2',)], 'native_group_norm in 1 mixes its channels')
    """
    inner, prefix = unwrapped(model)
    _refuse_computed_weights(inner, prefix)
    with _plain_tensors():
        network, inputs, tolerance = _prepared(inner, example_inputs)
        channels = trace(copied(network), _passes(network, inputs))
        found = _couplings(network, channels, types)
        unsound = _unsound(found, network, inputs, tolerance) if check and _has_values(network) else {}
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
    )


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
    from topoprune.compensation import check_images, refit  # here: it imports this module

    check_images(compensate, compensation)
    inner, prefix = unwrapped(model)
    _refuse_computed_weights(inner, prefix)
    with _plain_tensors():
        network, inputs, tolerance = _prepared(inner, example_inputs)
        channels = trace(copied(network), _passes(network, inputs))
        every = _couplings(network, channels, LAYERS)
        named = {layer.removeprefix(prefix): _integers(layer, chosen) for layer, chosen in kept.items()}
        removed = _removed(named, network, every)
        if check and _has_values(network) and (difference := _difference(network, inputs, removed, tolerance)):
            raise ValueError(
                f"these filters cannot be removed from {type(inner).__name__}: {difference}; "
                "choose them with topoprune.select, which leaves such layers whole"
            )
        small = without(model, removed)
        if compensate is not None and removed:
            refit(network, unwrapped(small)[0], removed, compensate, compensation, channels.follows)
        return small


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs.

    Attributes:
        parameters: number of parameters.
        flops: multiply-adds of convolutions, linear layers and the products of attention for one input (the convention
            of the pruning literature: VGG-16 at 32x32 has 313 million). Recurrent layers are not counted.
        latency_ms: median milliseconds for a batch of one.
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
        one = _median_seconds(network, first_inputs(example_inputs, 1), seconds)
        many = one if batch == 1 else _median_seconds(network, example_inputs, seconds)
        multiply_adds = _flops(network, example_inputs)
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
        return _flops(network, example_inputs)


def _flops(network: nn.Module, inputs: Any) -> int:
    counter, fused = FlopCounterMode(display=False), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know the fused operations of attention
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings(), counter:
            warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # the counter adds hooks
            run(network, first_inputs(inputs, 1))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


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


def run(model: nn.Module, inputs: Any) -> Any:
    """The output for a tensor, a tuple of positional or a dict of named arguments, outside the caller's autocast.

    The network gets copies without gradients, which it may change.

    Raises:
        ValueError: naming the inputs that the network does not take.
    """
    with _without_autocast():
        return _called(model, copied_inputs(inputs))


def _called(model: nn.Module, inputs: Any) -> Any:
    try:
        return call(model, inputs)
    except Exception as error:  # whatever the network's own forward raises
        raise ValueError(f"{type(model).__name__} does not run on {_refusal(inputs, error)}") from error


def call(model: nn.Module, inputs: Any) -> Any:
    """The output for a tensor, a tuple of positional or a dict of named arguments, with errors as they are raised."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def copied_inputs(inputs: Any) -> Any:
    """Copies without gradients, which a network may change."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), inputs)


def _refusal(inputs: Any, error: Exception) -> str:
    """Which inputs a network refuses, and the cure."""
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))
    others = {type(leaf).__name__ for leaf in tree_leaves(inputs) if not shapes or isinstance(leaf, np.ndarray)}
    if others:
        return (
            f"inputs of type {', '.join(sorted(others))}: pass a tensor, a tuple of positional or a dict of named "
            "arguments; torch.from_numpy makes a tensor of an array"
        )
    return f"example inputs of shape {shapes}: {_line(error)}; check their shape, type and device"


def without(model: nn.Module, removed: dict[Coupling, np.ndarray]) -> nn.Module:
    """A copy of the network that lacks some choices of its couplings, which are positions in `Coupling.members`."""
    small = copied(model)
    _cut(unwrapped(small)[0], removed)
    return small


def scores(model: nn.Module, coupling: Coupling, value: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """(choices,) mean over the weights that a choice is part of; each weight's slice is summed and made positive.

    Args:
        model: the network that the coupling was found in.
        value: of a parameter, one number for each of its elements; biases have no part.
    """
    parameters = dict(unwrapped(model)[0].named_parameters())
    parts = []
    for axis, (choices, indices) in coupling.slices.items():
        parameter = parameters.get(axis.tensor)
        if parameter is not None and not axis.tensor.endswith("bias"):
            sums = value(parameter).movedim(axis.axis, 0).flatten(1).sum(1) if parameter.ndim > 1 else value(parameter)
            total = torch.zeros(coupling.choices, device=sums.device)
            at = torch.as_tensor(choices, device=sums.device)
            parts.append(total.index_add(0, at, sums.detach().abs().float()[torch.as_tensor(indices)]))
    return torch.stack(parts).mean(0)


def width(model: nn.Module, layer: str) -> int:
    """Number of filters of a layer."""
    module: Any = model.get_submodule(layer)
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The network in DataParallel or torch.compile, and the prefix of its names."""
    inner, prefix = model, ""
    while True:
        if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner, prefix = inner.module, f"{prefix}module."
        elif isinstance(inner, torch._dynamo.OptimizedModule):
            inner, prefix = inner._orig_mod, f"{prefix}_orig_mod."
        else:
            return inner, prefix


def _refuse_computed_weights(model: nn.Module, prefix: str) -> None:
    """Refuse what cannot be cut: a weight must be a parameter of its layer."""
    for name, module in model.named_modules():
        what = f"{prefix}{name or type(model).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{what} is TorchScript: prune the nn.Module it was made from, then script the result")
        if "quantized" in type(module).__module__:
            raise ValueError(f"{what} is quantised: prune the float network, then quantise the result")
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{what} has a parametrized {next(iter(module.parametrizations))}: make it a plain parameter with "
                "torch.nn.utils.parametrize.remove_parametrizations, then prune"
            )
        if isinstance(module, LAYERS) and not isinstance(module._parameters.get("weight"), nn.Parameter):
            cure = "prune.remove" if "weight_mask" in module._buffers else "remove_weight_norm or remove_spectral_norm"
            raise ValueError(f"{what} computes its weight in a hook: call torch.nn.utils.{cure}, then prune")
        if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)):
            raise ValueError(f"{what} has no weights yet: run the network once on example inputs, then prune")


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """Work outside the caller's inference mode and autocast, with the caller's random numbers untouched."""
    eager = torch.compiler.set_stance("force_eager")  # compiled code cannot be followed
    with torch.inference_mode(False), _without_autocast(), _forked_random_numbers(), eager, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the network's own forward
        yield


@contextlib.contextmanager
def running_copy(model: nn.Module) -> Iterator[nn.Module]:
    """A copy in evaluation mode; running it changes neither the network nor the caller's random numbers."""
    with torch.inference_mode(False), _forked_random_numbers():
        yield copied(model).eval()


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _forked_random_numbers() -> contextlib.AbstractContextManager[None]:
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ())


def _prepared(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Any, float]:
    """A copy in evaluation mode and few inputs, in float32 unless the network insists on its own type."""
    for dtype, count in itertools.product((torch.float32, None), (2, None)):
        network = copied(model).eval().requires_grad_(False)
        inputs = first_inputs(example_inputs, count) if count else example_inputs
        if dtype:
            network = network.to(dtype)
            inputs = tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, inputs)
        try:
            with torch.no_grad():
                run(copied(network), inputs)
        except ValueError as error:
            failure = error
            continue
        precise = all(p.dtype in (torch.float32, torch.float64) for p in network.parameters())
        return network, inputs, TOLERANCE if precise else 50 * TOLERANCE
    raise failure


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. What a module has stored of an earlier pass is copied without its graph."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in tree_leaves([vars(module), dict(module._buffers)]):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever a module holds that cannot be copied
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {_line(error)}; remove attributes that cannot be copied"
        ) from error


def _passes(network: nn.Module, inputs: Any) -> Iterator[Callable[[nn.Module], Any]]:
    """One pass in evaluation mode; one in training mode if some layers, as auxiliary classifiers, run only there."""
    idle: set[str] = {name for name, module in network.named_modules() if any(True for _ in module.parameters(False))}

    def evaluate(model: nn.Module) -> Any:
        hooks = [
            module.register_forward_hook(lambda *_, name=name: idle.discard(name))
            for name, module in model.named_modules()
        ]
        torch.manual_seed(0)
        output = run(model, inputs)
        for hook in hooks:
            hook.remove()
        return output

    def train(model: nn.Module) -> Any:
        with contextlib.suppress(ValueError):  # such a network wants other inputs to train: it keeps what runs there
            return run(model.train(), inputs)

    yield evaluate
    if idle:
        yield train


def _couplings(network: nn.Module, channels: Channels, types: tuple[type, ...]) -> list[Coupling]:
    """Components of channels that can be removed, those of one layout together."""
    modules = dict(network.named_modules())
    order = {name: i for i, name in enumerate(modules)}
    writers = [w for w in channels.writers if isinstance(modules[w.layer], LAYERS) and w.axis.tensor.endswith("weight")]
    unusual = {c for w in channels.writers if w not in writers for c in channels.components(w.axis).tolist()}
    owned: dict[int, dict[str, list[int]]] = {}
    for writer in sorted(writers, key=lambda writer: order[writer.layer]):
        for position, component in enumerate(_written(writer, channels).tolist()):
            if component not in channels.fixed and component not in unusual:
                owned.setdefault(component, {}).setdefault(writer.layer, []).append(position)
    layouts: dict[tuple, list[int]] = {}
    for component, filters in owned.items():
        if any(isinstance(modules[layer], types) for layer in filters):
            layouts.setdefault(tuple((layer, len(own)) for layer, own in filters.items()), []).append(component)
    sizes = {writer.layer: len(_written(writer, channels)) for writer in writers}
    every = {axis: channels.components(axis) for axis in channels.start}
    bare = {name: own for name, own in channels.norms.items() if not modules[name].state_dict()}
    found = []
    for layout, components in layouts.items():
        layers = [layer for layer, _ in layout]
        components.sort(key=lambda component: owned[component][layers[0]])
        members = {layer: np.array([owned[component][layer] for component in components]) for layer in layers}
        slices, norms = (_slices(components, part, len(channels.component)) for part in (every, bare))
        readers = frozenset(axis for axis in slices if axis in channels.readers)
        found.append(Coupling(members, {layer: sizes[layer] for layer in layers}, slices, readers, norms))
    return sorted(found, key=lambda coupling: order[coupling.layers[0]])


def _written(writer: Writer, channels: Channels) -> np.ndarray:
    """(n,) the components of a layer's filters."""
    return np.tile(channels.components(writer.axis), writer.blocks)


def _slices(components: list[int], every: dict, count: int) -> dict:
    """Axis (or normalisation) -> rows of choices and of the indices that belong to them."""
    choice = np.full(count, -1)
    choice[components] = np.arange(len(components))
    found = {axis: choice[own] for axis, own in every.items()}
    return {
        axis: np.stack([own[own >= 0], np.flatnonzero(own >= 0)]) for axis, own in found.items() if (own >= 0).any()
    }


def _left_whole(
    network: nn.Module, channels: Channels, types: tuple[type, ...], sound: list[Coupling], reasons: dict[str, str]
) -> dict[str, str]:
    """Layer of `types` -> why some of its filters can never be removed."""
    free = {layer for coupling in sound for layer in coupling.layers}
    weights = {name.removesuffix(".weight"): id(x) for name, x in network.named_parameters(remove_duplicate=False)}
    pruned = {weights[layer] for layer in free}  # also of a layer whose weight is tied to another's
    left = {}
    for name, module in network.named_modules():
        if isinstance(module, types) and weights.get(name) not in pruned:
            axes = [axis for axis in channels.start if axis.tensor == f"{name}.weight"]
            fixed = [channels.fixed.get(c) for axis in axes for c in channels.components(axis).tolist()]
            ran = any(writer.layer == name for writer in channels.writers)
            why = reasons.get(name) or next((reason for reason in fixed if reason), None)
            left[name] = why or ("it is joined to another kind of layer" if ran else "it did not run on the inputs")
    return left


def _unsound(
    couplings: list[Coupling], network: nn.Module, inputs: Any, tolerance: float, base: tuple[Coupling, ...] = ()
) -> dict[Coupling, str]:
    """The couplings whose removal changes the answers, found by halving; `base` is known to be sound."""
    tested = [coupling for coupling in (*base, *couplings) if coupling.choices > 1]
    generator = np.random.default_rng(0)
    removed = {c: generator.permutation(c.choices)[: max(1, c.choices // 3)] for c in tested}
    if not couplings or (reason := _difference(network, inputs, removed, tolerance)) is None:
        return {}
    if len(couplings) == 1:
        return {couplings[0]: reason}
    half = len(couplings) // 2
    first = _unsound(couplings[:half], network, inputs, tolerance, base)
    base = (*base, *(coupling for coupling in couplings[:half] if coupling not in first))
    return first | _unsound(couplings[half:], network, inputs, tolerance, base)


def _difference(network: nn.Module, inputs: Any, removed: dict[Coupling, np.ndarray], tolerance: float) -> str | None:
    """How the network without some filters differs from the one that masks them; None if it does not."""
    if not removed:
        return None
    masked, small = copied(network), copied(network)
    for coupling, gone in removed.items():
        _mask(masked, coupling, gone)
    _cut(small, removed)
    try:
        answers = _answers(small, inputs)
    except ValueError as error:
        return f"the network no longer runs without some of its filters ({_line(error.__cause__ or error)})"
    for (name, expected), (_, answer) in zip(_answers(masked, inputs), answers, strict=False):
        if answer.shape != expected.shape:
            if name == "":
                return f"an output of shape {tuple(expected.shape)} becomes {tuple(answer.shape)}"
        elif not _close(answer, expected, tolerance):
            return f"the answers of {name or 'the network'} change where they should not"
    return None


def _answers(network: nn.Module, inputs: Any) -> list[tuple[str, Tensor]]:
    """The output of every layer and of the network (its name is empty), in the order of the calls."""
    found: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, output, name=name: found.extend((name, x) for x in tensors_in(output))
        )
        for name, module in network.named_modules()
        if name and not any(True for _ in module.children())
    ]
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            output = run(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, *(("", tensor) for tensor in tensors_in(output))]


def _close(answer: Tensor, expected: Tensor, tolerance: float) -> bool:
    answer, expected = answer.double(), expected.double()
    if not answer.numel() or torch.equal(answer.isfinite(), expected.isfinite()) is False:
        return answer.numel() == expected.numel() == 0
    answer, expected = (torch.nan_to_num(x, 0, 0, 0) for x in (answer, expected))
    return bool((answer - expected).abs().max() <= tolerance * expected.abs().max() + 1e-12)


def _mask(network: nn.Module, coupling: Coupling, gone: np.ndarray) -> None:
    """Zero what reads the channels of some choices."""
    parameters = dict(network.named_parameters())
    for axis in coupling.readers:
        choices, indices = coupling.slices[axis]
        away = torch.as_tensor(indices[np.isin(choices, gone)], device=parameters[axis.tensor].device)
        parameters[axis.tensor].data.index_fill_(axis.axis, away, 0)


def _integers(layer: str, chosen: Any) -> list[int]:
    """Indices as a list. A mask is refused: it would be read as the indices 0 and 1."""
    indices = np.asarray(chosen.tolist() if isinstance(chosen, Tensor) else [*chosen])
    if indices.size and (indices.ndim != 1 or indices.dtype.kind not in "iu"):
        what = f"{indices.dtype} of shape {indices.shape}"
        raise ValueError(f"{layer} needs integer indices, got {what}: numpy.flatnonzero makes them of a mask")
    return indices.tolist()


def _removed(kept: Kept, network: nn.Module, every: list[Coupling]) -> dict[Coupling, np.ndarray]:
    """The choices that `kept` leaves out of each coupling; refuse what cannot be done."""
    sizes = {name: width(network, name) for name, module in network.named_modules() if isinstance(module, LAYERS)}
    for layer, chosen in kept.items():
        if layer not in sizes:
            raise ValueError(f"unknown layer {layer!r}: the prunable layers are {', '.join(sizes)}")
        if not chosen:
            raise ValueError(f"{layer} would keep no filter: every layer keeps at least one")
        if outside := sorted(set(chosen) - set(range(sizes[layer]))):
            raise ValueError(f"{layer} has filters 0 to {sizes[layer] - 1}, got {outside}")
    gone = {layer: set(range(sizes[layer])) - set(chosen) for layer, chosen in kept.items()}
    removed = {}
    for coupling in every:
        named = [layer for layer in coupling.layers if layer in kept]
        lost = {layer: np.isin(coupling.members[layer], list(gone[layer])) for layer in named}
        for layer, rows in lost.items():
            if (rows.any(1) != rows.all(1)).any():
                one = coupling.members[layer][(rows.any(1) != rows.all(1)).argmax()].tolist()
                raise ValueError(
                    f"{layer} must keep or lose the filters {one} together: a grouped layer has equal groups"
                )
            if (rows.all(1) != lost[named[0]].all(1)).any():
                raise ValueError(f"{named[0]} and {layer} share their channels: give both the same filters to keep")
        if named and lost[named[0]].all(1).any():
            removed[coupling] = np.flatnonzero(lost[named[0]].all(1))
        for layer in named:
            gone[layer] -= set(coupling.members[layer].ravel().tolist())
    for layer, filters in gone.items():
        if filters:
            raise ValueError(f"{layer} must keep filter {min(filters)}: its channel cannot be removed")
    return removed


def _cut(network: nn.Module, removed: dict[Coupling, np.ndarray]) -> None:
    """Cut the slices of the removed choices out of all parameters and buffers, in place."""
    away: dict[Axis, list[np.ndarray]] = {}
    for coupling, gone in removed.items():
        for name, (choices, _) in coupling.norms.items():
            norm: Any = network.get_submodule(name)
            norm.num_features -= int(np.isin(choices, gone).sum())
        for axis, (choices, indices) in coupling.slices.items():
            away.setdefault(axis, []).append(indices[np.isin(choices, gone)])
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    new: dict[int, Tensor] = {}
    for axis, indices in away.items():
        old = tensors[axis.tensor]
        rest = np.setdiff1d(np.arange(old.shape[axis.axis]), np.concatenate(indices))
        value = new.get(id(old), old).detach()
        new[id(old)] = value.index_select(axis.axis, torch.as_tensor(rest, device=value.device))
    made = {id(old): _like(new[id(old)], old) for old in tensors.values() if id(old) in new}  # tied weights stay tied
    for module in network.modules():
        stores: tuple[dict, ...] = (module._parameters, module._buffers)
        for store in stores:
            store.update({name: made[id(old)] for name, old in store.items() if id(old) in made})
        _set_sizes(module)


def _like(value: Tensor, old: Tensor) -> Tensor:
    if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def _set_sizes(module: Any) -> None:
    """Let a layer's numbers of channels be those of its weight."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed:
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


def _renamed(coupling: Coupling, prefix: str) -> Coupling:
    members = {prefix + layer: rows for layer, rows in coupling.members.items()}
    sizes = {prefix + layer: size for layer, size in coupling.sizes.items()}
    return Coupling(members, sizes, coupling.slices, coupling.readers, coupling.norms)


def _has_values(network: nn.Module) -> bool:
    return not any(parameter.is_meta for parameter in network.parameters())


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
    """The first inputs of a batch; all of them if they are no batch."""
    return some_inputs(inputs, 0, count)


def some_inputs(inputs: Any, start: int, stop: int) -> Any:
    """A part of a batch; tensors that have no part in the batch stay whole.

    Example:
        >>> [tensor.shape for tensor in some_inputs((torch.ones(240, 3), torch.ones(1, 4)), 10, 12)]
        [torch.Size([2, 3]), torch.Size([1, 4])]
    """
    size = batch_size(inputs)
    return tree_map_only(Tensor, lambda x: x[start:stop] if x.ndim and len(x) == size > 1 else x, inputs)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def latency_ms(model: nn.Module, example_inputs: Any, seconds: float = 0.2) -> float:
    """Median milliseconds of one input."""
    with running_copy(model) as network:
        return 1e3 * _median_seconds(network, first_inputs(example_inputs, 1), seconds)


@torch.inference_mode()
def _median_seconds(network: nn.Module, inputs: Any, seconds: float) -> float:
    # Imported here: it warns of a CUDA toolkit where there is no device, which most commands need not see.
    from torch.utils.benchmark import Timer

    inputs = copied_inputs(inputs)
    timer = Timer(
        f"called(network, {'copied_inputs(inputs)' if _changes(network, inputs) else 'inputs'})",
        globals={"called": _called, "copied_inputs": copied_inputs, "network": network, "inputs": inputs},
        num_threads=torch.get_num_threads(),
    )
    once = timer.timeit(2).mean  # warms up
    return timer.timeit(1).median if once > seconds else timer.blocked_autorange(min_run_time=seconds).median


def _changes(network: nn.Module, inputs: Any) -> bool:
    """Whether a forward pass changes its inputs."""
    used = copied_inputs(inputs)
    _called(network, used)
    after, before = [*tensors_in(used)], [*tensors_in(inputs)]
    return len(after) != len(before) or not all(
        a.dtype == b.dtype and (a.is_meta or torch.equal(a, b)) for a, b in zip(after, before, strict=True)
    )
