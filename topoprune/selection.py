"""Which filters stay: one function, `select`, for every method."""

import inspect
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from topoprune import budget, criteria
from topoprune.coupling import LAYERS, Coupling, Kept, width
from topoprune.functional import responses
from topoprune.genetic import Search, check_number
from topoprune.network import PruningWarning, Structure, structure
from topoprune.passes import check_model
from topoprune.topological import SPACE_METRICS, among_living, points, topological

LAYER_CRITERIA: dict[str, Callable] = {
    "l1": criteria.l1,
    "l2": criteria.l2,
    "fpgm": criteria.fpgm,
    "folding": criteria.folding,
}
"""Method -> scores of a coupling's points: (n, d) -> (n,). The largest stay. Or, with `keep`, the indices that stay."""

RESPONSE_CRITERIA: dict[str, Callable] = {"qr": criteria.qr, "obs": criteria.obs}
"""Method -> the indices that stay, of what a coupling's channels compute, see `functional.Responses`."""

NETWORK_CRITERIA: dict[str, Callable] = {"magnitude": criteria.magnitude, "taylor": criteria.taylor}
"""Method -> scores of all couplings, which compete with one another at equal FLOPs."""

METHODS = ("random", *LAYER_CRITERIA, "topological", *RESPONSE_CRITERIA, *NETWORK_CRITERIA)

NNI_PRUNERS = {"l1": "L1NormPruner", "l2": "L2NormPruner", "fpgm": "FPGMPruner"}

log = logging.getLogger("topoprune")


@dataclass(frozen=True)
class Selection:
    """What a method chose, and how.

    Attributes:
        kept: layer -> sorted indices of the kept filters.
        seconds: time that choosing took, once the couplings are known.
        searches: first layer of each coupling -> one dict a generation (topological only).
        left_whole: layer -> why all of its filters stay.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> chosen = run_selection(model, torch.randn(2, 3, 8, 8), method="topological", ratio=0.5, generations=3)
        >>> len(chosen.kept["0"]), chosen.searches.keys()
        (4, dict_keys(['0']))
    """

    kept: Kept
    seconds: float
    searches: dict[str, list[dict]]
    left_whole: dict[str, str]


def select(
    model: nn.Module,
    example_inputs: Any,
    method: str | Callable = "topological",
    ratio: float | int | Mapping[str, float | int] = budget.RATIO,
    seed: int = 0,
    round_to: int = 1,
    **options,
) -> Kept:
    """Choose the filters that stay in each layer.

    Args:
        model: any network; it is untouched.
        example_inputs: what `forward` takes: a tensor, a tuple of positional or a dict of named arguments. The
            calibration batch of `space="activations"` and of "taylor"; the inputs on which `space="functional"`, "qr"
            and "obs" judge what channels compute (some 500 to 1,000 images).
        method: "random", "l1", "l2", "fpgm", "folding", "topological"; "qr" or "obs", which judge what channels
            compute; or a criterion of the whole architecture at the same FLOPs, "magnitude" or "taylor". Or a
            function of a coupling's points (n, d), a float32 array, that gives n scores, floats, of which the largest
            stay; or, with a second argument `keep`, the indices of the `keep` points that stay.
        ratio: share of the filters to remove from every layer, in [0, 1): `int(n * ratio)` of n filters go, as in
            NNI. Or {pattern: ratio}, as {"layer1.*": 0.3}; layers that no pattern matches stay whole.
        seed: of the random and the topological method.
        round_to: keep a number of filters that is a multiple of this where the layer has as many; hardware is fast
            at multiples of 8. Filters that can never be removed, as those of an output, are not counted.
        **options: those of `run_selection`, and of the method.

    Returns:
        Layer name -> sorted indices of its kept filters, for every layer of the `types`; one that is left whole
        has all.

    Raises:
        ValueError: an unknown method or option, a ratio outside [0, 1), a network in which nothing can be pruned,
            weights that are not finite.

    Warns:
        PruningWarning: naming layers that are left whole although they have filters to remove.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> kept = select(model, torch.randn(2, 3, 8, 8), method="l1", ratio=0.25)
        >>> {layer: len(filters) for layer, filters in kept.items()}
        {'0': 6, '2': 4}
    """
    return run_selection(model, example_inputs, method, ratio, seed, round_to, **options).kept


def run_selection(
    model: nn.Module,
    example_inputs: Any,
    method: str | Callable = "topological",
    ratio: float | int | Mapping[str, float | int] = budget.RATIO,
    seed: int = 0,
    round_to: int = 1,
    layers: str | Sequence[str] | None = None,
    *,
    minimum: int = 1,
    ignore: str | nn.Module | type | Iterable[str | nn.Module | type] = (),
    types: type | tuple[type, ...] = (nn.Conv2d,),
    flops: float | int | None = None,
    parameters: float | int | None = None,
    latency_ms: float | int | None = None,
    check: bool = True,
    **options,
) -> Selection:
    """Choose as `select` does, and give also the time, the history of the search and the layers that are left whole.

    Args:
        model, example_inputs, method, ratio, seed, round_to: as for `select`.
        layers: restrict the choice to these layers.
        minimum: filters that every layer keeps at least.
        ignore: layers that stay whole: names or patterns, modules, or types of modules. A module covers all in it.
        types: types of layers to prune; `nn.Linear` adds hidden linear layers.
        flops, parameters: what should remain, a share up to 1 or a number. It takes the place of `ratio`, and is met
            as closely as single filters allow. Layers that {pattern: ratio} leaves whole stay whole.
        latency_ms: the same for the median latency of one input on this machine.
        check: verify on the example inputs what is removed together, see `structure`.
        **options: of the method: those of `topological`; `space`, which a criterion of a layer and a function take as
            well; `labels` of "taylor"; `engine="nni"` of "l1", "l2" and "fpgm", which asks NNI's own pruner.

    Raises:
        ValueError: as `select`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> chosen = run_selection(model, torch.randn(2, 3, 8, 8), method="random", flops=0.5)
        >>> len(chosen.kept["0"]), chosen.left_whole
        (4, {'2': 'its channels are an output of the network'})
    """
    check_arguments(method, ratio, round_to, minimum, options)
    check_number("seed", seed, 0)
    target = budget.single_target({"flops": flops, "parameters": parameters, "latency_ms": latency_ms}, ratio)
    ignored = set(ignored_layers(model, ignore))
    found = structure(model, example_inputs, types if isinstance(types, tuple) else (types,), check)
    _warn(model, {layer: reason for layer, reason in found.left_whole.items() if layer not in ignored})
    _warn_idle([name for name in found.idle if name not in ignored])
    couplings, left = _prunable(found, ignored, [layers] if isinstance(layers, str) else layers)
    names = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    ratios = budget.ratios_of(couplings, ratio, names)
    held = {
        layer: "it is coupled to a layer that the ratio leaves whole"
        for coupling, share in zip(couplings, ratios, strict=True)
        for layer in coupling.layers
        if not share and budget.ratio_of(layer, ratio)
    }
    _warn(model, held | budget.without_effect(couplings, ratio, {name: left.get(name) for name in names}))
    left |= held
    replaced = target is not None and not isinstance(ratio, Mapping)
    least = [minimum if r or replaced else max(c.sizes.values()) for c, r in zip(couplings, ratios, strict=True)]

    def shape(counts: Sequence[int]) -> list[int]:
        """Round counts up to those that the couplings may keep."""
        return [budget.allowed_count(c, k, round_to, m) for c, k, m in zip(couplings, counts, least, strict=True)]

    if target is None:  # as in NNI
        counts = shape([c.choices - int(c.choices * r) for c, r in zip(couplings, ratios, strict=True)])
    else:
        counts, target = _counts_for(model, example_inputs, couplings, shape, *target)
    started = time.perf_counter()
    limits = shape([1] * len(couplings)), [budget.allowed_count(c, 1, round_to) for c in couplings]
    chosen, searches = _choose(model, example_inputs, couplings, counts, method, seed, limits, target, options)
    # a search that was resumed took the seconds before it was interrupted as well
    searched = sum(step["seconds"] for steps in searches.values() for step in steps)
    seconds = max(time.perf_counter() - started, searched)
    whole = {} if layers is not None else {layer: list(range(width(model, layer))) for layer in left}
    kept = whole | _kept(couplings, chosen)
    return Selection({name: kept[name] for name in names if name in kept}, seconds, searches, left)


def _prunable(
    found: Structure, ignored: set[str], layers: Sequence[str] | None
) -> tuple[list[Coupling], dict[str, str]]:
    """The couplings to choose in, and each layer that is left whole -> why."""
    couplings = [c for c in found.couplings if ignored.isdisjoint(c.layers)]
    free = {layer for c in couplings for layer in c.layers}
    left = found.left_whole | {
        layer: "it is ignored" if layer in ignored else "it is coupled to a layer that is ignored"
        for coupling in found.couplings
        for layer in coupling.layers
        if layer not in free
    }
    if unknown := set(layers or ()) - free:
        raise ValueError(f"unknown layer {sorted(unknown)[0]!r}: see topoprune.couplings for those that can be pruned")
    couplings = [c for c in couplings if layers is None or not set(layers).isdisjoint(c.layers)]
    if not couplings:
        raise ValueError("nothing to prune: every layer is left whole or ignored; ignore fewer, or prune other types")
    return couplings, left


def _choose(model, example_inputs, couplings, counts, method, seed, limits, target, options):
    """For each coupling the choices that stay, and the history of each search."""
    if is_global(method):
        return _choose_globally(model, example_inputs, couplings, counts, method, limits, target, options), {}
    if method == "random":
        generator = np.random.default_rng(seed)
        return [generator.permutation(c.choices)[:k].tolist() for c, k in zip(couplings, counts, strict=True)], {}
    clouds: Sequence
    if isinstance(method, str) and method in RESPONSE_CRITERIA:
        clouds = responses(model, example_inputs, couplings)
    else:
        clouds = points(model, example_inputs, couplings, options.get("space", "weights"))
    layers = list(zip(couplings, clouds, counts, strict=True))
    progress = tqdm(layers, desc="select", unit="layer", leave=False, disable=None)
    if method == "topological":
        return _search_layers(progress, seed, **options)
    engine = options.get("engine")
    return [_by_criterion(method, engine, coupling, cloud, keep) for coupling, cloud, keep in progress], {}


def _choose_globally(model, example_inputs, couplings, counts, method, limits, target, options):
    """The choices of the largest scores in the whole network, at the target or at the FLOPs of `counts`."""
    what, goal = target or ("flops", None)
    measure = budget.cost_function(model, example_inputs, couplings, what)
    scores = NETWORK_CRITERIA[method](model, example_inputs, couplings, **options)
    for coupling, values in zip(couplings, scores, strict=True):
        if not values.isfinite().all():
            raise ValueError(
                f"{coupling.layers[0]} has scores by {method!r} that are NaN or infinite: check the example inputs "
                "and the weights for such values"
            )
    return budget.by_scores(scores, limits[0], limits[1], measure, measure(counts) if goal is None else goal)


def _search_layers(layers: Iterable, seed: int, space: str = "weights", checkpoints: Any = None, **options):
    """One topological search in each coupling: the choices that stay, and the histories."""
    options.setdefault("metric", SPACE_METRICS.get(space, "euclidean"))
    search = among_living if space == "functional" else topological
    chosen, searches = [], {}
    for index, (coupling, cloud, keep) in enumerate(layers):
        log.info("%s: keep %d of %d", coupling.layers[0], keep, coupling.choices)
        checkpoint = None if checkpoints is None else Path(str(checkpoints), f"search-{index}.json")
        result = search(cloud, keep, seed * 1000 + index, checkpoint=checkpoint, **options)
        chosen.append(result.kept.tolist())
        searches[coupling.layers[0]] = result.history
    return chosen, searches


def _by_criterion(method: str | Callable, engine: str | None, coupling: Coupling, cloud: Any, keep: int) -> list[int]:
    """The choices of one coupling that a criterion of its points keeps."""
    log.info("%s: keep %d of %d", coupling.layers[0], keep, coupling.choices)
    if engine == "nni" and keep < len(cloud):
        return criteria.nni(NNI_PRUNERS[str(method)], cloud, keep)
    criterion = method if callable(method) else (LAYER_CRITERIA | RESPONSE_CRITERIA)[method]
    return _best(criterion, coupling.layers[0], cloud, keep)


def _best(criterion: Callable, layer: str, cloud: Any, keep: int) -> list[int]:
    """The choice of a function of the points: scores, of which the largest stay, or the indices that stay."""
    wants_keep = "keep" in inspect.signature(criterion).parameters
    answer = np.asarray(criterion(cloud, keep) if wants_keep else criterion(cloud))
    if wants_keep:
        chosen = sorted(set(answer.tolist()))
        if answer.dtype.kind not in "iu" or len(chosen) != keep or not set(chosen) <= set(range(len(cloud))):
            raise ValueError(
                f"the criterion must give {keep} different indices below {len(cloud)} for {layer}, got "
                f"{answer.dtype} of shape {answer.shape} with {len(chosen)} different values"
            )
        return chosen
    if answer.shape != (len(cloud),) or not np.isfinite(answer.astype(float)).all():
        what = "NaN or infinity" if answer.shape == (len(cloud),) else f"{answer.dtype} of shape {answer.shape}"
        raise ValueError(f"the criterion must give {len(cloud)} finite scores for {layer}, got {what}")
    return sorted(np.argsort(-answer.astype(float), kind="stable")[:keep].tolist())


def _kept(couplings: Sequence[Coupling], chosen: Sequence[Sequence[int]]) -> Kept:
    kept: dict[str, set[int]] = {}
    for coupling, choice in zip(couplings, chosen, strict=True):
        gone = np.setdiff1d(np.arange(coupling.choices), choice)
        for layer in coupling.layers:
            kept.setdefault(layer, set(range(coupling.sizes[layer]))).difference_update(coupling.filters(layer, gone))
    return {layer: sorted(filters) for layer, filters in kept.items()}


def _counts_for(model, example_inputs, couplings, shape, what: str, value: float | int) -> tuple[list[int], Any]:
    """The counts of the nearest uniform ratio, and the target as a number."""
    measure = budget.cost_function(model, example_inputs, couplings, what)
    goal = budget.absolute_target(what, value, measure([c.choices for c in couplings]))
    if measure(shape([1] * len(couplings))) > 1.01 * goal:
        raise ValueError(
            f"{what} cannot fall to {goal:g}: with the fewest filters allowed it is still above it; raise the target, "
            "or lower minimum or round_to"
        )
    return budget.counts_at(couplings, shape, measure, goal), (what, goal)


def ignored_layers(model: nn.Module, ignore: str | nn.Module | type | Iterable[str | nn.Module | type]) -> list[str]:
    """Names of the layers inside the modules that `ignore` names."""
    check_model(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    inside: set[nn.Module] = set()
    kinds = str, nn.Module, type
    every = [ignore] if isinstance(ignore, kinds) or not isinstance(ignore, Iterable) else [*ignore]
    if not all(isinstance(one, kinds) for one in every):
        raise ValueError(f"ignore must be names, modules or types of modules, got {ignore!r}")
    for one in every:
        if isinstance(one, str):
            found = [m for name, m in modules.items() if name == one or (one not in modules and fnmatchcase(name, one))]
        elif isinstance(one, type):
            found = [m for m in modules.values() if isinstance(m, one)]
        else:
            found = [m for m in modules.values() if m in one.modules()]
        if not found:
            raise ValueError(f"ignore names {one!r}, which is not in {type(model).__name__}: see its named_modules()")
        inside.update(part for module in found for part in module.modules())
    return [name for name, module in model.named_modules() if isinstance(module, LAYERS) and module in inside]


def _warn(model: nn.Module, left: dict[str, str]) -> None:
    """Say what is left whole, except for the network's own outputs."""
    told = {
        layer: reason
        for layer, reason in left.items()
        if "an output of the network" not in reason and width(model, layer) > 1
    }
    if told:
        some = "; ".join(f"{layer} because {reason}" for layer, reason in list(told.items())[:3])
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        warnings.warn(f"left whole: {some}{more}", PruningWarning, stacklevel=4)


def _warn_idle(idle: list[str]) -> None:
    if idle:
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        warnings.warn(
            f"modules that did not run on the example inputs keep their shape, and fail where they read removed "
            f"channels: {', '.join(idle[:3])}{more}; pass inputs that reach them",
            PruningWarning,
            stacklevel=4,
        )


def is_functional(method: str | Callable, options: Mapping[str, Any]) -> bool:
    """Whether a choice looks at what channels compute, and so needs real inputs, many of them."""
    return (isinstance(method, str) and method in RESPONSE_CRITERIA) or options.get("space") == "functional"


def is_global(method: str | Callable) -> bool:
    """Whether the filters of all layers compete with one another."""
    return isinstance(method, str) and method in NETWORK_CRITERIA


def check_arguments(method, ratio, round_to: int, minimum: int, options: dict) -> None:
    """Reject arguments that are invalid for any network, before anything is computed."""
    if not callable(method) and method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}, or pass a function")
    check_number("round_to", round_to, 1)
    check_number("minimum", minimum, 1)
    budget.check_ratios(ratio)
    known = _options_of(method)
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"unknown option {', '.join(unknown)} of method {method!r}: it takes {', '.join(sorted(known)) or 'none'}"
        )
    if not isinstance(options.get("space", ""), str):
        raise ValueError(f"space must be a name, got {options['space']!r}")
    if not callable(method) and method in NNI_PRUNERS and options.get("engine", "nni") != "nni":
        raise ValueError(f"engine of {method!r} must be 'nni', or left out, got {options['engine']!r}")


def _options_of(method: str | Callable) -> set[str]:
    if callable(method):
        return {"space"}
    if method == "topological":
        own = {p.name for p in inspect.signature(topological).parameters.values() if p.kind is p.KEYWORD_ONLY}
        return own - {"checkpoint"} | {"space", "checkpoints"} | {setting.name for setting in fields(Search)}
    if method in NETWORK_CRITERIA:
        signature = inspect.signature(NETWORK_CRITERIA[method])
        return {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    if method == "random" or method in RESPONSE_CRITERIA:
        return set()
    return {"space", "engine"} if method in NNI_PRUNERS else {"space"}
