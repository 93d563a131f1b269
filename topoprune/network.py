"""Remove filters from a network for real, and say what the smaller network costs.

Which layers must shrink together (residual additions, depthwise and grouped convolutions) is read
from the dependency graph of Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning",
CVPR 2023), which also removes the filters, for every pruning method alike.
"""

import copy
import math
import warnings
from dataclasses import dataclass

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Kept = dict[str, list[int]]
"""Layer name -> sorted indices of its kept filters."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Coupling:
    """Layers whose filters can only be removed together.

    Attributes:
        layers: names of the layers that produce the shared channels, the root first.
        filters: number of channels of each of these layers.
        blocks: number of equal blocks that the channels fall into; the same positions are kept in
            every block, because a grouped convolution (or GroupNorm) downstream needs blocks of
            equal size. 1 for an ordinary convolution.
    """

    layers: tuple[str, ...]
    filters: int
    blocks: int = 1

    @property
    def choices(self) -> int:
        """How many independent keep-or-remove decisions there are."""
        return self.filters // self.blocks

    def channels(self, chosen: list[int]) -> list[int]:
        """Sorted channel indices that belong to the `chosen` positions of every block."""
        return sorted(b * self.choices + int(i) for b in range(self.blocks) for i in chosen)


def couplings(model: nn.Module, example_inputs: torch.Tensor) -> list[Coupling]:
    """The prunable groups of layers of `model`, in the order of its modules.

    A group that reaches the network's output (a convolution whose channels are the classes) is left
    out: removing from it would change what the network answers.

    Args:
        model: any network with `nn.Conv2d` layers.
        example_inputs: a batch that the network accepts, on the network's device.

    Raises:
        ValueError: no convolution can be pruned, or the network cannot be traced.
    """
    graph, names = _trace(model, example_inputs)
    order = {name: i for i, name in enumerate(names.values())}
    found = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        outputs = [dep for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        if any(dep.target.name.startswith("_OutputOp") for dep in outputs):
            continue
        producers = {
            names[dep.target.module] for dep in outputs if isinstance(dep.target.module, (nn.Conv2d, nn.Linear))
        }
        root = group[0].dep.target.module
        layers = sorted(producers, key=order.__getitem__)
        found.append(Coupling(tuple(layers), root.out_channels, _blocks(group)))
    if not found:
        raise ValueError(
            "nothing to prune: the model has no nn.Conv2d layer whose filters may be "
            "removed; pass a convolutional network"
        )
    return sorted(found, key=lambda coupling: order[coupling.layers[0]])


def remove(model: nn.Module, example_inputs: torch.Tensor, kept: Kept) -> nn.Module:
    """A new network without the filters that `kept` leaves out; `model` is untouched.

    Args:
        model: the network.
        example_inputs: a batch that the network accepts.
        kept: layer -> indices of the filters to keep, as `select` returns it. Layers that are not
            named keep all their filters.

    Raises:
        ValueError: an unknown layer, an empty or out-of-range choice, or coupled layers that
            disagree.
    """
    small = copy.deepcopy(model)
    groups = couplings(small, example_inputs)
    _check(kept, groups)
    graph, names = _trace(small, example_inputs)
    modules = {name: module for module, name in names.items()}
    for coupling in groups:
        chosen = next((kept[layer] for layer in coupling.layers if layer in kept), None)
        if chosen is None:
            continue
        removed = sorted(set(range(coupling.filters)) - set(chosen))
        if removed:
            graph.get_pruning_group(_root(coupling, modules), tp.prune_conv_out_channels, removed).prune()
    return small


@dataclass(frozen=True)
class Cost:
    """What a forward pass costs.

    Attributes:
        parameters: number of parameters.
        flops: multiply-adds of convolutions and linear layers for one input (the convention of the
            pruning literature: VGG-16 at 32x32 has 313 million).
        latency_ms: median milliseconds for a batch of one.
        images_per_second: inputs a second at the size of the example batch.
    """

    parameters: int
    flops: int
    latency_ms: float
    images_per_second: float


def cost(model: nn.Module, example_inputs: torch.Tensor, seconds: float = 0.2) -> Cost:
    """Parameters, FLOPs and latency of `model` in evaluation mode.

    Args:
        model: the network.
        example_inputs: (b, ...) batch on the network's device; b is the size for the throughput.
        seconds: how long each of the two timings runs.
    """
    training = model.training
    model.eval()
    with torch.inference_mode():
        one = _median_seconds(model, example_inputs[:1], seconds)
        batch = one if len(example_inputs) == 1 else _median_seconds(model, example_inputs, seconds)
    model.train(training)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops(model, example_inputs),
        latency_ms=1e3 * one,
        images_per_second=len(example_inputs) / batch,
    )


def flops(model: nn.Module, example_inputs: torch.Tensor) -> int:
    """Multiply-adds of one input; on the "meta" device nothing is computed for it."""
    training = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(example_inputs[:1])
    model.train(training)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two


def importances(
    model: nn.Module, example_inputs: torch.Tensor, groups: list[Coupling], importance
) -> list[Float[torch.Tensor, " _"]]:
    """What a criterion of Torch-Pruning says of each coupling's choices.

    Args:
        importance: as `tp.importance.GroupMagnitudeImportance()`; those that need gradients find
            them on the parameters of `model`.
    """
    graph, names = _trace(model, example_inputs)
    modules = {name: module for module, name in names.items()}
    scores = []
    for coupling in groups:
        root = _root(coupling, modules)
        every = list(range(coupling.filters))
        score = importance(graph.get_pruning_group(root, tp.prune_conv_out_channels, every))
        scores.append(score.detach().reshape(coupling.blocks, coupling.choices).sum(0).float())
    return scores


def folded_norm(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, nn.Module]:
    """Layer name -> the BatchNorm that directly follows it, where one does."""
    graph, names = _trace(model, example_inputs)
    return {
        names[module]: output.module
        for module, node in graph.module2node.items()
        if isinstance(module, nn.Conv2d)
        for output in node.outputs
        if isinstance(output.module, _NORMS)
    }


def _trace(model: nn.Module, example_inputs: torch.Tensor):
    names = {module: name for name, module in model.named_modules()}
    training = [module for module in names if module.training]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
            graph = tp.DependencyGraph().build_dependency(model, example_inputs[:2])
    except Exception as error:  # whatever the network's own forward raises
        raise ValueError(
            f"Torch-Pruning cannot trace {type(model).__name__} on inputs of shape "
            f"{tuple(example_inputs.shape)}: {error!r}; check the inputs' shape and "
            "device, or prune a part of the network that it can trace"
        ) from error
    finally:
        for module in training:  # Torch-Pruning leaves the network in evaluation mode
            module.training = True
    return graph, names


def _root(coupling: Coupling, modules: dict[str, nn.Module]) -> nn.Conv2d:
    return next(modules[layer] for layer in coupling.layers if isinstance(modules[layer], nn.Conv2d))


def _blocks(group) -> int:
    """Least number of equal blocks that suits every grouped layer of `group`."""
    sizes = [1]
    for dep, _ in group:
        module = dep.target.module
        if isinstance(module, nn.Conv2d) and module.groups not in (1, module.out_channels):
            sizes.append(module.groups)
        if isinstance(module, nn.GroupNorm) and module.num_groups != module.num_channels:
            sizes.append(module.num_groups)
    return math.lcm(*sizes)


def _check(kept: Kept, groups: list[Coupling]) -> None:
    known = {layer: coupling for coupling in groups for layer in coupling.layers}
    for layer, chosen in kept.items():
        if layer not in known:
            raise ValueError(f"unknown layer {layer!r}: the prunable layers are {', '.join(known)}")
        coupling = known[layer]
        if not chosen:
            raise ValueError(f"{layer} would keep no filter: every layer keeps at least one")
        if not set(chosen) <= set(range(coupling.filters)):
            raise ValueError(
                f"{layer} has filters 0 to {coupling.filters - 1}, got "
                f"{sorted(set(chosen) - set(range(coupling.filters)))}"
            )
        for other in coupling.layers:
            if sorted(kept.get(other, chosen)) != sorted(chosen):
                raise ValueError(
                    f"{layer} and {other} share their channels and must keep the same "
                    "filters: give both the same indices"
                )


def _median_seconds(model: nn.Module, inputs: torch.Tensor, seconds: float) -> float:
    # Imported here: it warns of a CUDA toolkit where there is no device, which most commands need not see.
    from torch.utils.benchmark import Timer

    timer = Timer("model(inputs)", globals={"model": model, "inputs": inputs}, num_threads=torch.get_num_threads())
    timer.timeit(2)  # warm up
    return timer.blocked_autorange(min_run_time=seconds).median
