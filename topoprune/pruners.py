"""Which filters stay: one function, `select`, for every method.

A method sees each coupling (one convolution, or layers that must shrink together) as a cloud of
points: one row for each filter, the weights of all coupled layers side by side. L1, L2 (Li et al.,
ICLR 2017) and FPGM (He et al., CVPR 2019) are NNI's own pruners; the topological method searches
the subset whose persistence diagrams stay closest to the whole layer's. Beside them stand two
criteria over the whole architecture, from Torch-Pruning.
"""

import copy
import inspect
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from jaxtyping import Float
from torch import nn

from topoprune.surgery import (
    Coupling,
    Kept,
    couplings,
    flops,
    folded_norm,
    importances,
    remove,
)

ACTIVATION_SIDE = 4
"""Activations are averaged to at most this many rows and columns for each image."""


@dataclass(frozen=True)
class Selection:
    """What a method chose, and how.

    Attributes:
        kept: layer -> sorted indices of the kept filters.
        seconds: time that choosing took; tracing the network, imports and compilation left out.
        searches: first layer of each coupling -> one dict a generation (topological only).
    """

    kept: Kept
    seconds: float
    searches: dict[str, list[dict]] = field(default_factory=dict)


def select(model: nn.Module, example_inputs: torch.Tensor, method: str = "topological",
           ratio: float = 0.5, seed: int = 0, round_to: int = 1, **options) -> Kept:
    """The filters to keep of each layer.

    Args:
        model: any network with `nn.Conv2d` layers; it is untouched.
        example_inputs: a batch that the network accepts, on its device; the calibration batch where
            `space="activations"`.
        method: "random", "l1", "l2", "fpgm", "topological", or a criterion over the whole
            architecture at the same FLOPs, "magnitude" or "taylor".
        ratio: share of the filters to remove from every layer, in [0, 1); `int(n * ratio)` of n
            filters go, as in NNI. The criteria over the whole architecture remove as many FLOPs.
        seed: of the random and the topological method.
        round_to: layer-wise methods keep a number of filters rounded up to a multiple of this,
            where the layer has as many: hardware is fast at multiples of 8. The criteria over the
            whole architecture follow in FLOPs alone.
        **options: of the method, see `topological`, `magnitude` and `taylor`.

    Returns:
        Layer name -> sorted indices of its kept filters, for every layer that loses filters.

    Raises:
        ValueError: unknown method or option, a ratio outside [0, 1), a network without
            convolutions, weights that are not finite.
    """
    return selection(model, example_inputs, method, ratio, seed, round_to, **options).kept


def selection(model: nn.Module, example_inputs: torch.Tensor, method: str = "topological",
              ratio: float = 0.5, seed: int = 0, round_to: int = 1,
              layers: Sequence[str] | None = None, **options) -> Selection:
    """As `select`, with the time and the course of the search; of some `layers` alone if named."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio}: every layer keeps at least one "
                         "filter")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1, got {round_to}: kept filters come in "
                         "multiples of it")
    _check_options(method, options)
    groups = [group for group in couplings(model, example_inputs)
              if layers is None or not set(layers).isdisjoint(group.layers)]
    remaining = [_remaining(group.choices, ratio, round_to) for group in groups]
    _make_ready(method)
    started = time.perf_counter()
    chosen, searches = METHODS[method](model, example_inputs, groups, remaining, seed, **options)
    # A search that was continued took the seconds of its earlier sittings too.
    searched = sum(step["seconds"] for steps in searches.values() for step in steps)
    seconds = max(time.perf_counter() - started, searched)
    kept = {layer: group.channels(choice)
            for group, choice in zip(groups, chosen, strict=True) for layer in group.layers}
    return Selection(kept, seconds, searches)


def points(model: nn.Module, example_inputs: torch.Tensor, groups: list[Coupling],
           space: str = "weights") -> list[Float[np.ndarray, "n d"]]:
    """The filters of each coupling as points.

    Args:
        space: "weights" (flattened filters), "folded" (each times gamma/sigma of the BatchNorm that
            follows it) or "activations" (the channel's outputs on
            `example_inputs`, before the nonlinearity).

    Returns:
        For each coupling (n, d) float32, n its `choices`; coupled layers (and the blocks of a
        grouped convolution) side by side in d.

    Raises:
        ValueError: unknown space, or values that are not finite.
    """
    if space not in SPACES:
        raise ValueError(f"unknown space {space!r}: choose from {', '.join(SPACES)}")
    rows = SPACES[space](model, example_inputs)
    clouds = []
    for group in groups:
        parts = [rows[layer].reshape(group.blocks, group.choices, -1).transpose(0, 1).flatten(1)
                 for layer in group.layers]
        cloud = torch.cat(parts, dim=1).float().cpu().numpy()
        if not np.isfinite(cloud).all():
            raise ValueError(f"{group.layers[0]} has values that are NaN or infinite: the model is "
                             "damaged or diverged in training; load a sound checkpoint")
        clouds.append(cloud)
    return clouds


def topological(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int, *,
                space: str = "weights", metric: str = "euclidean", pointed: bool = False,
                dimensions: Sequence[int] = (0, 1), distance: str = "wasserstein",
                search: str = "genetic", engine: str = "fast", device: str | None = None,
                checkpoints: Path | None = None, **budget):
    """Search, layer by layer, the subset whose persistence diagrams are closest to the layer's.

    Args:
        space: what a filter's point is, see `points`.
        metric: "euclidean", "cosine" or "correlation".
        pointed: add the zero filter, which is always kept.
        dimensions: of homology.
        distance: between diagrams: "wasserstein", "bottleneck", "landscape", "betti", "entropy".
        search: "genetic", or a rival with the same budget: "random", "greedy", "farthest".
        engine: "fast" or "reference" (giotto-tda), equal in value.
        device: "cuda" computes the trees of dimension 0 there, see `topology.Fitness`.
        checkpoints: folder in which each layer's search is saved at a generation's end.
        **budget: fields of `genetic.Search` (population, generations, ...).
    """
    from topoprune import genetic, topology

    if search not in genetic.SEARCHES:
        raise ValueError(f"unknown search {search!r}: choose from {', '.join(genetic.SEARCHES)}")
    settings = genetic.Search(**budget)
    chosen, histories = [], {}
    clouds = points(model, example_inputs, groups, space)
    for index, (group, cloud, kept) in enumerate(zip(groups, clouds, remaining, strict=True)):
        delta = topology.distance_matrix(cloud, metric, pointed)
        fitness = topology.Fitness(delta, tuple(dimensions), distance, pointed, engine, device)
        result = genetic.SEARCHES[search](
            group.choices, kept, fitness, settings, seed=seed * 1000 + index,
            checkpoint=checkpoints / f"search-{index}.json" if checkpoints else None, delta=delta)
        chosen.append(result.kept.tolist())
        histories[group.layers[0]] = result.history
    return chosen, histories


def magnitude(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int):
    """L2 norms of coupled filters, each layer's divided by its mean, over the whole architecture.

    Torch-Pruning's `GroupMagnitudeImportance` with its defaults (Fang et al., 2023).
    """
    importance = tp.importance.GroupMagnitudeImportance()
    return _matched(model, example_inputs, groups, remaining,
                    importances(model, example_inputs, groups, importance)), {}


def taylor(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int, *,
           labels: torch.Tensor | None = None):
    """First-order Taylor expansion of the loss, over the whole architecture.

    Torch-Pruning's `GroupTaylorImportance`: the absolute sum of weight times gradient of a filter and
    of what depends on it. There is no normaliser, the values are comparable between layers (Molchanov et
    al., CVPR 2019).

    Args:
        labels: (b,) classes of the example inputs; by default what the network itself answers.
    """
    judged = copy.deepcopy(model).eval()
    logits = judged(example_inputs)
    labels = logits.argmax(1) if labels is None else labels
    F.cross_entropy(logits, labels).backward()
    importance = tp.importance.GroupTaylorImportance(normalizer=None, multivariable=True)
    return _matched(model, example_inputs, groups, remaining,
                    importances(judged, example_inputs, groups, importance)), {}


def _matched(model, example_inputs, groups: list[Coupling], remaining: list[int],
             scores: list[Float[torch.Tensor, " _"]]) -> list[list[int]]:
    """The least important filters removed, wherever they are, until the FLOPs are those of `remaining`.

    Every layer keeps its most important filter.
    """
    ranked = [score.argsort(descending=True).tolist() for score in scores]
    order = sorted((score[i].item(), layer, i) for layer, score in enumerate(scores)
                   for i in ranked[layer][1:])

    def kept(removals: int) -> list[list[int]]:
        removed = Counter(layer for _, layer, _ in order[:removals])
        return [sorted(best[:len(best) - removed[layer]]) for layer, best in enumerate(ranked)]

    def remaining_flops(chosen: list[list[int]]) -> int:
        named = {group.layers[0]: group.channels(choice)
                 for group, choice in zip(groups, chosen, strict=True)}
        return flops(remove(outline, shape, named), shape)

    outline, shape = copy.deepcopy(model).to("meta"), example_inputs[:2].to("meta")
    goal = remaining_flops([list(range(count)) for count in remaining])
    enough = bisect_left(range(len(order)), -goal, key=lambda m: -remaining_flops(kept(m)))
    near = [kept(m) for m in (max(enough - 1, 0), enough)]
    return min(near, key=lambda chosen: abs(remaining_flops(chosen) - goal))


def _random(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int):
    generator = np.random.default_rng(seed)
    return [generator.permutation(group.choices)[:kept].tolist()
            for group, kept in zip(groups, remaining, strict=True)], {}


def _nni(pruner: str):
    """NNI's criterion on every coupling, through stand-in 1x1 convolutions.

    A stand-in's filters are the coupling's points. For an uncoupled layer these are its own
    filters, so the choice is the one that NNI makes on the network itself.
    """

    def choose(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int):
        from nni.compression import pruning

        clouds = [torch.from_numpy(cloud) for cloud in points(model, example_inputs, groups)]
        standins = nn.ModuleList(nn.Conv2d(cloud.shape[1], len(cloud), 1, bias=False)
                                 for cloud in clouds)
        for standin, cloud in zip(standins, clouds, strict=True):
            standin.weight.data = cloud[:, :, None, None]
        # Half a filter more: NNI rounds down. A ratio of 0 it refuses.
        ratios = {str(i): (len(cloud) - kept + 0.5) / len(cloud)
                  for i, (cloud, kept) in enumerate(zip(clouds, remaining, strict=True))
                  if kept < len(cloud)}
        chosen = [list(range(len(cloud))) for cloud in clouds]
        if ratios:
            made = getattr(pruning, pruner)(standins, [
                {"op_names": [name], "sparse_ratio": ratio} for name, ratio in ratios.items()])
            _, masks = made.compress()
            made.unwrap_model()
            for name in ratios:
                mask = masks[name]["weight"].flatten(1).amax(1)
                chosen[int(name)] = mask.nonzero().flatten().tolist()
        return chosen, {}

    return choose


METHODS: dict[str, Callable] = {
    "random": _random,
    "l1": _nni("L1NormPruner"),
    "l2": _nni("L2NormPruner"),
    "fpgm": _nni("FPGMPruner"),
    "topological": topological,
    "magnitude": magnitude,
    "taylor": taylor,
}


def _make_ready(method: str) -> None:
    """Import and compile what the first call would wait for, so that times compare methods."""
    if method in ("l1", "l2", "fpgm"):
        import nni.compression.pruning  # noqa: F401
    elif method == "topological":
        from topoprune import topology

        corners = topology.distance_matrix(np.eye(6))
        topology.Fitness(corners)(np.array([[0, 1, 2, 3]]))


def _check_options(method: str, options: dict) -> None:
    named = inspect.signature(METHODS[method]).parameters.values()
    known = {p.name for p in named if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in named):
        from topoprune.genetic import Search

        known |= {field.name for field in fields(Search)}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"unknown option {', '.join(unknown)} of method {method!r}: it takes "
                         f"{', '.join(sorted(known)) or 'none'}")


def _remaining(filters: int, ratio: float, round_to: int) -> int:
    kept = filters - int(filters * ratio)
    return min(filters, math.ceil(kept / round_to) * round_to)


def _weights(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: module.weight.detach().flatten(1) for name, module in model.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))}


def _folded(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = _weights(model, example_inputs)
    for layer, norm in folded_norm(model, example_inputs).items():
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        rows[layer] = rows[layer] * scale[:, None]
    return rows


def _activations(model: nn.Module, example_inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Layer -> (filters, images x positions) outputs, after the BatchNorm where one follows."""
    watched = {name: module for name, module in model.named_modules()
               if isinstance(module, (nn.Conv2d, nn.Linear))}
    watched |= folded_norm(model, example_inputs)
    rows = {}

    def keep(name):
        def hook(module, inputs, output):
            if isinstance(module, nn.Linear):  # channels come last
                output = output.flatten(0, -2)
            else:
                side = [min(ACTIVATION_SIDE, length) for length in output.shape[2:]]
                output = F.adaptive_avg_pool2d(output, side)
            rows[name] = output.detach().transpose(0, 1).flatten(1) / len(output) ** 0.5
        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(example_inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return rows


SPACES = {"weights": _weights, "folded": _folded, "activations": _activations}
