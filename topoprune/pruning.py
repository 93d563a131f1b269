"""Prune a network in memory: a module in, a result out."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from topoprune.budget import TARGETS, absolute_target, ratio_of
from topoprune.compensation import check_images
from topoprune.network import LAYERS, Cost, Kept, cost, first_inputs, remove, width
from topoprune.selection import check_arguments, run_selection

TIMED = 64
"""Largest batch whose throughput is measured: the inputs may be a thousand images to choose by."""

_SELECTION = inspect.signature(run_selection).parameters
"""Names of the options that every method has."""


@dataclass(frozen=True)
class Pruned:
    """What `prune` gives; `print` shows it.

    Attributes:
        model: the smaller network; None after a dry run.
        kept: layer -> sorted indices of the kept filters, of the network as it was given.
        left_whole: layer -> why all of its filters stay.
        before: what a forward pass of the given network costs.
        after: what one of the smaller network costs.
        filters: layer -> number of filters before.
        seconds: time that choosing took.
        searches: first layer of each coupling -> one dict a generation, of the last step (topological only).

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> result = prune(model, torch.randn(2, 3, 8, 8), method="l1", ratio=0.5, dry_run=True)
        >>> result.filters["0"], len(result.kept["0"]), result.model
        (8, 4, None)
        >>> print(result)  # doctest: +ELLIPSIS
                                        before         after    left
        parameters                         516           260  50.4 %
        ...
          0                                            8 -> 4
          2                                            4 -> 4
          left whole: 2 because its channels are an output of the network
    """

    model: nn.Module | None
    kept: Kept
    left_whole: dict[str, str]
    before: Cost
    after: Cost
    filters: dict[str, int]
    seconds: float
    searches: dict[str, list[dict]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        lines = [f"{'':24}{'before':>14}{'after':>14}{'left':>8}"]
        for name, before, after in (
            ("parameters", self.before.parameters, self.after.parameters),
            ("FLOPs (multiply-adds)", self.before.flops, self.after.flops),
            ("latency of one (ms)", self.before.latency_ms, self.after.latency_ms),
        ):
            digits = ",.2f" if isinstance(before, float) else ",d"
            share = f"{100 * after / before:.1f} %" if before and math.isfinite(after) else ""
            lines.append(f"{name:24}{before:>14{digits}}{after:>14{digits}}{share:>8}")
        lines += [f"  {layer:<40}{self.filters[layer]:>6} -> {len(kept)}" for layer, kept in self.kept.items()]
        lines += [f"  left whole: {layer} because {reason}" for layer, reason in self.left_whole.items()]
        return "\n".join(lines)


def prune(
    model: nn.Module,
    example_inputs: Any,
    method: str | Callable = "topological",
    ratio: float | int | Mapping[str, float | int] = 0.5,
    seed: int = 0,
    *,
    steps: int = 1,
    between: Callable[[nn.Module, int], Any] | None = None,
    schedule: Callable[[float], float] | None = None,
    dry_run: bool = False,
    compensate: Any = None,
    compensation: str = "convolution",
    **options,
) -> Pruned:
    """Choose filters, remove them from a copy, and say what it saves. The given network is untouched.

    Args:
        model: any network.
        example_inputs: what `forward` takes: a tensor, a tuple of positional or a dict of named arguments, on the
            network's device. Results are verified on them, and methods that need data take them.
        method, ratio, seed: as for `select`.
        steps: remove a little at a time; each step chooses anew on the network that `between` returned or changed.
        between: called with the smaller network and the number of the step, from 1, after every step but the last,
            to fine-tune it in place; a module that it returns takes the network's place.
        schedule: share of all steps done, in (0, 1] -> share of the removal done by then; rising, 1 at 1. By default
            every step removes as much.
        dry_run: only say what would go: the result has no model, and `between` is not called.
        compensate: images without labels, on which every step refits the layers that read removed channels; a tensor
            or batches, as for `remove`. A dry run refits nothing.
        compensation: "convolution" or "channels", as for `remove`.
        **options: those of `run_selection`, such as `ignore`, `round_to`, `flops` or `types`, and of the method.

    Returns:
        The smaller network, the kept filters, costs before and after. Fine-tune it, or recalibrate its BatchNorm, which
        `compensate` has done.

    Raises:
        ValueError: as `select` and `remove`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> result = prune(model, torch.randn(2, 3, 8, 8), method="l1", ratio=0.5)
        >>> result.model[0].out_channels, len(result.kept["0"]), result.after.parameters < result.before.parameters
        (4, 4, True)
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}: every step removes filters")
    check_images(compensate, compensation)
    settings = {name: value for name, value in options.items() if name not in _SELECTION}
    check_arguments(method, ratio, options.get("round_to", 1), options.get("minimum", 1), settings)
    few = first_inputs(example_inputs, TIMED)
    before = cost(model, few)
    target = {name: options.pop(name) for name in TARGETS if options.get(name) is not None}
    goals = {name: absolute_target(name, value, before) for name, value in target.items()}
    kept: Kept = {}
    seconds, current = 0.0, model
    for step in range(1, steps + 1):
        done = schedule(step / steps) if schedule else step / steps
        goal: dict[str, Any] = {name: _between(getattr(before, name), value, done) for name, value in goals.items()}
        part = ratio if steps == 1 or goal else _part(model, current, ratio, done)
        chosen = run_selection(current, example_inputs, method, part, seed, **goal, **options)
        seconds += chosen.seconds
        kept = _composed(kept, chosen.kept)
        images = None if dry_run else compensate
        check = options.get("check", True)
        current = remove(current, example_inputs, chosen.kept, check, images, compensation)
        if between is not None and step < steps and not dry_run:
            current = between(current, step) or current
    filters = {layer: width(model, layer) for layer in kept}
    after, small = cost(current, few), None if dry_run else current
    return Pruned(small, kept, chosen.left_whole, before, after, filters, seconds, chosen.searches)


def _between(start: float | int, end: float | int, done: float | int) -> float | int:
    return start + (end - start) * done


def _part(
    model: nn.Module, current: nn.Module, ratio: float | int | Mapping[str, float | int], done: float | int
) -> dict[str, float]:
    """The ratio of every layer of the current network that leaves it what a part of the whole removal leaves."""
    parts = {}
    for layer, module in model.named_modules():
        if isinstance(module, LAYERS):
            whole, now = width(model, layer), width(current, layer)
            goal = whole - int(whole * ratio_of(layer, ratio) * done)
            parts[layer] = max(0.0, (now - goal + 0.5) / now) if goal < now else 0.0  # half a filter: rounding down
    return parts


def _composed(first: Kept, second: Kept) -> Kept:
    """Indices of the original filters, of a choice among those that an earlier choice kept."""
    return {layer: [first[layer][i] for i in chosen] if layer in first else chosen for layer, chosen in second.items()}
