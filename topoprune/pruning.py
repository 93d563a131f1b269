"""Prune a network in memory: a module in, a result out."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from topoprune.budget import RATIO, TARGETS, absolute_target, ratio_of, ratios_of, single_target
from topoprune.compensation import check_images
from topoprune.costs import Cost, cost, flops
from topoprune.coupling import Kept, composed, width, widths
from topoprune.genetic import check_number
from topoprune.network import PruningWarning, check_refit, remove
from topoprune.passes import first_inputs
from topoprune.selection import check_arguments, ignored_layers, is_global, run_selection

MAX_TIMED_BATCH = 64
"""Largest batch that is timed. The example inputs may be a thousand images to choose by."""

NEXT_TO_NOTHING = 1e-9
"""A ratio that removes no filter in this step. A ratio of 0 would leave the layer out."""

SELECTION_ARGUMENTS = inspect.signature(run_selection).parameters
"""Arguments of `run_selection`; other options belong to the method."""


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`; `print` shows a summary.

    Attributes:
        model: the smaller network; None after a dry run.
        kept: layer -> sorted indices of the kept filters, of the network as it was given.
        left_whole: layer -> why all of its filters stay.
        before: cost of one forward pass of the given network.
        after: cost of one forward pass of the pruned network.
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
    searches: dict[str, list[dict]] = field(repr=False)

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
    ratio: float | int | Mapping[str, float | int] = RATIO,
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
        model: any network. Its hooks run on copies of it, too.
        example_inputs: what `forward` takes: a tensor, a tuple of positional or a dict of named arguments, on the
            network's device. Results are verified on them, and methods that need data take them.
        method, ratio, seed: as for `select`.
        steps: remove a little at a time; each step chooses anew on the network that `between` returned or changed.
        between: called with the smaller network and the number of the step, from 1, after every step but the last,
            to fine-tune it in place; a module that it returns, with the same layers, takes the network's place.
        schedule: share of all steps done, in (0, 1] -> share of the removal done by then; rising, 1 at 1. By default
            every step removes as much.
        dry_run: only say what would go: the result has no model, and `between` is not called.
        compensate: images without labels, on which every step refits the layers that read removed channels; a tensor
            or batches, as for `remove`. A dry run refits nothing.
        compensation: "convolution" or "channels", as for `remove`.
        **options: those of `run_selection`, such as `ignore`, `round_to`, `flops` or `types`, and of the method.

    Returns:
        The smaller network, the kept filters, costs before and after. Fine-tune it, or recalibrate its BatchNorm;
        `compensate` already recalibrates BatchNorm.

    Raises:
        ValueError: as `select` and `remove`; a `schedule` that falls, or a `between` that changes layers.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> result = prune(model, torch.randn(2, 3, 8, 8), method="l1", ratio=0.5)
        >>> result.model[0].out_channels, len(result.kept["0"]), result.after.parameters < result.before.parameters
        (4, 4, True)
    """
    check_number("steps", steps, 1)
    for name, function in (("between", between), ("schedule", schedule)):
        if not (function is None or callable(function)):
            raise ValueError(f"{name} must be a function, got {function!r}")
    check_images(compensate, compensation)
    shares = _shares(schedule, steps)
    settings = {name: value for name, value in options.items() if name not in SELECTION_ARGUMENTS}
    check_arguments(method, ratio, options.get("round_to", 1), options.get("minimum", 1), settings)
    what, goal = single_target({name: options.pop(name, None) for name in TARGETS}, ratio) or ("", 0)
    options["ignore"] = ignored_layers(model, options.get("ignore", ()))  # after a step the modules are others
    few = first_inputs(example_inputs, MAX_TIMED_BATCH)
    before = cost(model, few)
    if what:
        goal = absolute_target(what, goal, getattr(before, what))
    elif is_global(method) and steps > 1:
        what, goal = "flops", _flops_left(model, example_inputs, ratio, options)
        ratio = ratio if isinstance(ratio, Mapping) else RATIO
    images = None if dry_run else compensate
    if (what and steps > 1) or (images is not None and method not in ("random", "l1", "l2")):
        # refuse an impossible target, and images unfit to refit on, before a search or fine-tuning is spent
        probe = _random_choice(model, example_inputs, ratio, options | ({what: goal} if what else {}))
        if images is not None:
            check_refit(model, example_inputs, probe, images, compensation)
    kept: Kept = {}
    seconds, current, checkpoints = 0.0, model, options.get("checkpoints")
    for step, done in enumerate(shares, 1):
        if what:
            options[what] = (1 - done) * getattr(before, what) + done * goal
        if checkpoints is not None and steps > 1:
            options["checkpoints"] = Path(str(checkpoints), f"step-{step}")
        part = ratio if steps == 1 or what else _remaining_ratios(model, current, ratio, done)
        chosen = run_selection(current, example_inputs, method, part, seed, **options)
        seconds += chosen.seconds
        kept = composed(kept, chosen.kept)
        current = remove(current, example_inputs, chosen.kept, options.get("check", True), images, compensation)
        if between is not None and step < steps and not dry_run:
            current = _tuned(between, current, step)
    filters = {layer: width(model, layer) for layer in kept}
    after, small = cost(current, few), None if dry_run else current
    return Pruned(small, kept, chosen.left_whole, before, after, filters, seconds, chosen.searches)


def _random_choice(model: nn.Module, example_inputs: Any, ratio: Any, options: dict[str, Any]) -> Kept:
    """A random choice, which keeps as many filters as any other and costs next to nothing."""
    shared = {name: value for name, value in options.items() if name in SELECTION_ARGUMENTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PruningWarning)  # the choice itself warns
        return run_selection(model, example_inputs, "random", ratio, **shared).kept


def _shares(schedule: Callable[[float], float] | None, steps: int) -> list[float | int]:
    """The share of the removal that is done after each step."""
    equal = [step / steps for step in range(1, steps + 1)]
    shares = [schedule(share) for share in equal] if schedule else equal
    if not all(earlier <= later for earlier, later in pairwise([0, *shares])) or not math.isclose(shares[-1], 1):
        raise ValueError(f"schedule must rise from 0 or more to 1 at 1, got {', '.join(map(str, shares))}")
    return [*shares[:-1], 1.0]


def _flops_left(model: nn.Module, example_inputs: Any, ratio: Any, options: dict[str, Any]) -> int:
    """FLOPs of the network without a share of every layer."""
    kept = _random_choice(model, example_inputs, ratio, options)
    return flops(remove(model, example_inputs, kept, check=False), example_inputs)


def _remaining_ratios(
    model: nn.Module, current: nn.Module, ratio: float | int | Mapping[str, float | int], done: float | int
) -> dict[str, float]:
    """The ratio of each layer of the current network after which a share `done` of the whole removal is done."""
    ratios, left = {}, widths(current)
    ratios_of([], ratio, [*left])  # rejects a pattern that matches no layer
    for layer, whole in widths(model).items():
        now, goal = left[layer], whole - int(whole * ratio_of(layer, ratio) * done)
        none = NEXT_TO_NOTHING if ratio_of(layer, ratio) else 0.0
        ratios[layer] = (now - goal + 0.5) / now if goal < now else none  # half a filter: rounding down
    return ratios


def _tuned(between: Callable[[nn.Module, int], Any], current: nn.Module, step: int) -> nn.Module:
    """The network that `between` returned, or changed in place."""
    before, answer = widths(current), between(current, step)
    tuned = answer if isinstance(answer, nn.Module) else current
    if widths(tuned) != before:
        raise ValueError(
            f"between must keep layers, names and filters, got {type(tuned).__name__}: return the network itself, not "
            "in a wrapper"
        )
    return tuned
