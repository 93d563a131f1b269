"""Which filters stay: one function, `select`, for every method.

A method sees each coupling (one convolution, or layers that must shrink together) as a cloud of
points: one row for each filter, the weights of all coupled layers side by side. L1, L2 (Li et al.,
ICLR 2017) and FPGM (He et al., CVPR 2019) are NNI's own pruners; the topological method searches
the subset whose persistence diagrams stay closest to the whole layer's. Beside them stand two
criteria over the whole architecture, from Torch-Pruning.
"""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import nn

from topoprune import criteria
from topoprune.network import Kept, couplings
from topoprune.topological import topological


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


def select(
    model: nn.Module,
    example_inputs: torch.Tensor,
    method: str = "topological",
    ratio: float = 0.5,
    seed: int = 0,
    round_to: int = 1,
    **options,
) -> Kept:
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
    return run_selection(model, example_inputs, method, ratio, seed, round_to, **options).kept


def run_selection(
    model: nn.Module,
    example_inputs: torch.Tensor,
    method: str = "topological",
    ratio: float = 0.5,
    seed: int = 0,
    round_to: int = 1,
    layers: Sequence[str] | None = None,
    **options,
) -> Selection:
    """As `select`, with the time and the course of the search; of some `layers` alone if named."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio}: every layer keeps at least one filter")
    if round_to < 1:
        raise ValueError(f"round_to must be at least 1, got {round_to}: kept filters come in multiples of it")
    _check_options(method, options)
    groups = [
        group
        for group in couplings(model, example_inputs)
        if layers is None or not set(layers).isdisjoint(group.layers)
    ]
    remaining = [_remaining(group.choices, ratio, round_to) for group in groups]
    _make_ready(method)
    started = time.perf_counter()
    chosen, searches = METHODS[method](model, example_inputs, groups, remaining, seed, **options)
    # A search that was continued took the seconds of its earlier sittings too.
    searched = sum(step["seconds"] for steps in searches.values() for step in steps)
    seconds = max(time.perf_counter() - started, searched)
    kept = {
        layer: group.channels(choice) for group, choice in zip(groups, chosen, strict=True) for layer in group.layers
    }
    return Selection(kept, seconds, searches)


METHODS: dict[str, Callable] = {
    "random": criteria.random,
    "l1": criteria.nni("L1NormPruner"),
    "l2": criteria.nni("L2NormPruner"),
    "fpgm": criteria.nni("FPGMPruner"),
    "topological": topological,
    "magnitude": criteria.magnitude,
    "taylor": criteria.taylor,
}


def _make_ready(method: str) -> None:
    """Import and compile what the first call would wait for, so that times compare methods."""
    if method in ("l1", "l2", "fpgm"):
        import nni.compression.pruning  # noqa: F401
    elif method == "topological":
        from topoprune.fitness import Fitness, distance_matrix

        corners = distance_matrix(np.eye(6))
        Fitness(corners)(np.array([[0, 1, 2, 3]]))


def _check_options(method: str, options: dict) -> None:
    named = inspect.signature(METHODS[method]).parameters.values()
    known = {p.name for p in named if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in named):
        from topoprune.genetic import Search

        known |= {field.name for field in fields(Search)}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"unknown option {', '.join(unknown)} of method {method!r}: it takes {', '.join(sorted(known)) or 'none'}"
        )


def _remaining(filters: int, ratio: float, round_to: int) -> int:
    kept = filters - int(filters * ratio)
    return min(filters, math.ceil(kept / round_to) * round_to)
