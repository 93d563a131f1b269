"""How many filters stay: a ratio for every layer or for some, or a target of FLOPs, parameters or latency."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn

from topoprune.costs import count_flops, fewest, flops, latency_ms
from topoprune.coupling import Coupling
from topoprune.cutting import without
from topoprune.passes import copied, each_tensor, running_copy, undisturbed

TARGETS = ("flops", "parameters", "latency_ms")
RATIO = 0.5
"""Share of the filters that leaves every layer by default."""

Chosen = list[list[int]]
"""For each coupling the positions of the choices that stay."""


def ratios_of(
    couplings: Sequence[Coupling], ratio: float | int | Mapping[str, float | int], layers: Sequence[str]
) -> list[float | int]:
    """The share of choices to remove from each coupling.

    Args:
        couplings: of the network.
        ratio: one for all, or pattern -> ratio; "layer1.*" matches as in a shell, and a layer that no pattern
            matches stays whole. A layer's name counts before patterns, the first that matches; of coupled layers the
            smallest ratio.
        layers: names of all layers of the network.

    Raises:
        ValueError: a pattern that matches no layer.
    """
    for pattern in _rules(ratio):
        if pattern not in layers and not any(fnmatchcase(layer, pattern) for layer in layers):
            raise ValueError(f"ratio names {pattern!r}, which no layer matches: the layers are {', '.join(layers)}")
    return [min(ratio_of(layer, ratio) for layer in coupling.layers) for coupling in couplings]


def without_effect(couplings: Sequence[Coupling], ratio: Any, layers: Mapping[str, str | None]) -> dict[str, str]:
    """Layer -> why it is not pruned, for patterns that match no pruned layer.

    A ratio that names every layer comes from the steps of `topoprune.prune`, and is not judged.

    Args:
        layers: name -> why it is left whole; None if that is not known.
    """
    pruned = {layer for coupling in couplings for layer in coupling.layers}
    rules, found = _rules(ratio), dict[str, str]()
    names_all = rules.keys() >= layers.keys()
    for pattern, value in () if names_all else rules.items():
        named = [pattern] if pattern in layers else [layer for layer in layers if fnmatchcase(layer, pattern)]
        if value and pruned.isdisjoint(named):
            found |= {layer: layers[layer] or "types does not name its type" for layer in named}
    return found


def check_ratios(ratio: Any) -> None:
    """Reject a ratio that is not a number in [0, 1), or a pattern that is not a string."""
    for pattern, value in _rules(ratio).items():
        if not isinstance(pattern, str) or not isinstance(value, Real):
            raise ValueError(f"ratio must be a number or {{pattern: number}}, got {ratio!r}")
        if not 0 <= float(value) < 1:
            raise ValueError(f"ratio must lie in [0, 1), got {value}: every layer keeps at least one filter")


def ratio_of(layer: str, ratio: float | int | Mapping[str, float | int]) -> float | int:
    """The ratio of one layer."""
    rules = _rules(ratio)
    return rules.get(layer, next((value for pattern, value in rules.items() if fnmatchcase(layer, pattern)), 0.0))


def _rules(ratio: Any) -> dict[str, Any]:
    return dict(ratio) if isinstance(ratio, Mapping) else {"*": ratio}


def single_target(targets: Mapping[str, Any], ratio: Any = RATIO) -> tuple[str, float | int] | None:
    """The name and value of the target that is not None, if any. Reject several, and a value that is not above 0.

    A `ratio` that is given beside a target, and is not the default, would be ignored: it is rejected.
    """
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"one target at a time, got {' and '.join(given)}: leave all but one out")
    for name, value in given.items():
        if not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be above 0, got {value!r}: it is what should remain")
        if not isinstance(ratio, Mapping) and ratio != RATIO:
            raise ValueError(f"{name}={value!r} takes the place of ratio={ratio!r}: give one of them")
    return next(iter(given.items()), None)


def absolute_target(name: str, value: float | int, whole: float | int) -> float | int:
    """A target as a number, above 1. Values up to 1 are shares of the whole, except for latency."""
    return max(value * whole, math.nextafter(1, 2)) if value <= 1 and name != "latency_ms" else value


def allowed_count(coupling: Coupling, count: int, round_to: int = 1, minimum: int = 1) -> int:
    """Round `count` up to the allowed number of choices: at least `minimum` filters, a multiple of `round_to`.

    A layer with fewer filters than that stays whole.
    """
    widths = [filters.shape[1] for filters in coupling.members.values()]  # filters that go with one choice, by layer
    step = math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))
    count = max(count, math.ceil(minimum / min(widths)), 1)
    return min(coupling.choices, math.ceil(count / step) * step)


def counts_at(
    couplings: Sequence[Coupling], shape: Callable[[list[int]], list[int]], measure: Callable, goal: float | int
):
    """The counts along the rising uniform ratio at which a measure is nearest to its goal.

    Args:
        couplings: of the network; every step takes one choice of one coupling.
        shape: rounds counts.
        measure: of counts; it falls as they do.
        goal: wanted value.
    """
    steps = sorted((j / c.choices, i) for i, c in enumerate(couplings) for j in range(1, c.choices))

    def counts(removals: int) -> list[int]:
        gone = np.bincount([i for _, i in steps[:removals]], minlength=len(couplings))
        return shape([c.choices - int(n) for c, n in zip(couplings, gone, strict=True)])

    measured = cache(lambda removals: measure(counts(removals)))
    enough = _removals_to(goal, measured, len(steps))
    near = max(enough - 1, 0), min(enough, len(steps))
    return counts(min(near, key=lambda removals: abs(measured(removals) - goal)))


def _removals_to(goal: float | int, measured: Callable[[int], float | int], most: int) -> int:
    """Fewest removals after which a falling measure is at most `goal`; `most` + 1 if it never is."""
    return bisect_left(range(most + 1), -goal, key=lambda removals: -measured(removals))


def by_scores(
    scores: Sequence[torch.Tensor],
    least: Sequence[int],
    steps: Sequence[int],
    measure: Callable[[Chosen], float | int],
    goal: float | int,
) -> Chosen:
    """Remove the filters of the lowest scores in the whole network until a measure reaches its goal.

    A filter that would overshoot the goal is skipped, and cheaper ones are tried. Every coupling keeps its `least`
    most important choices. It loses them in `steps`, judged by their mean score; what exceeds a multiple goes first.
    """
    ranked = [score.argsort(descending=True, stable=True).tolist() for score in scores]
    cuts = [range(count, len(best) + 1, step) for count, best, step in zip(least, ranked, steps, strict=True)]
    rests = [best[cut[-1] :] for cut, best in zip(cuts, ranked, strict=True)]
    order = sorted(
        (score[group].mean().item(), layer, group)
        for layer, score in enumerate(scores)
        for group in [*(ranked[layer][start:stop] for start, stop in pairwise(cuts[layer])), rests[layer]]
        if group
    )

    def kept(gone: Iterable[tuple]) -> Chosen:
        away: list[set[int]] = [set() for _ in scores]
        for _, layer, group in gone:
            away[layer].update(group, rests[layer])
        return [sorted(set(best) - lost) for best, lost in zip(ranked, away, strict=True)]

    measured = cache(lambda removals: measure(kept(order[:removals])))
    enough = _removals_to(goal, measured, len(order))
    gone = order[: max(enough - 1, 0)]  # the last state that does not fall below the goal
    best, gap = kept(gone), measured(len(gone)) - goal
    saved: dict[int, float] = {}
    for step in order[len(gone) :]:
        if gap <= 0.001 * goal:
            break
        if saved.get(step[1], 0.0) > 2 * gap:  # further from the goal below it than now above it
            continue
        after = measure(kept([*gone, step])) - goal
        saved[step[1]] = gap - after
        if abs(after) < gap:
            gone, best, gap, saved = [*gone, step], kept([*gone, step]), after, {}
    return best


def cost_function(
    model: nn.Module, example_inputs: Any, couplings: Sequence[Coupling], what: str
) -> Callable[[Chosen | list[int]], int | float]:
    """A function that gives "flops", "parameters" or "latency_ms" of the network with some choices kept.

    FLOPs and parameters are counted on the "meta" device, where nothing is computed.
    """
    outline, inputs = model, example_inputs
    if what != "latency_ms":
        outline, inputs = _outline(model, example_inputs)

    def measure(kept: Chosen | list[int]) -> int | float:
        chosen = [list(range(k)) if isinstance(k, int) else k for k in kept]
        removed = {
            c: np.delete(np.arange(c.choices), stays)
            for c, stays in zip(couplings, chosen, strict=True)
            if len(stays) < c.choices
        }
        small = without(outline, removed)
        if what == "parameters":
            return sum(parameter.numel() for parameter in small.parameters())
        if what == "latency_ms":
            return latency_ms(small, inputs)
        with undisturbed():
            return count_flops(small.eval(), inputs)

    return measure


def _outline(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Any]:
    """The network and the fewest inputs that it takes, on the "meta" device if it runs there."""
    with running_copy(model) as network:
        few = fewest(network, example_inputs)
    outline = copied(model).to("meta")
    shapes = each_tensor(few, lambda tensor: tensor.to("meta"))
    try:
        flops(outline, shapes)
    except ValueError:
        return model, few
    return outline, shapes
