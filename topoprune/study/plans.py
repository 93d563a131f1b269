"""The specs of a profile, in the order in which one process runs them."""

from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral
from typing import Any

from topoprune.genetic import Search
from topoprune.study.profiles import (
    COMPANIONS,
    COMPENSATED,
    PORTRAYED,
    VARIANTS,
    Profile,
    method_and_options,
    profile,
)
from topoprune.study.trial import Clouds, Dense, Portrait, Removal, Spec, Trial
from topoprune.training import Recipe


def dense_specs(name: str, seeds: Iterable[int] | None = None) -> list[Dense]:
    """The dense networks of a profile.

    Raises:
        ValueError: seeds that are not whole numbers from 0.

    Example:
        >>> [dense.seed for dense in dense_specs("quick", [2, 0])]
        [2, 0]
    """
    p = profile(name)
    return [Dense(p.dataset, "vgg16", p.width, seed, p.dense) for seed in _chosen_seeds(p, seeds)]


def trial_specs(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> list[Trial]:
    """The trials of a profile, or some of them: its first ratios for every seed, then the others.

    Raises:
        ValueError: methods or ratios that the profile does not have, or seeds that are not whole numbers from 0.

    Example:
        >>> [trial.ratio for trial in trial_specs("quick", seeds=[0], methods=["l1"])]
        [0.5, 0.9]
    """
    p = profile(name)
    chosen_methods = _chosen(methods, p.methods, "methods", name)
    chosen_ratios = _chosen(ratios, p.ratios, "ratios", name)
    found = [
        _trial(p, dense, method, ratio, recovery)
        for dense in dense_specs(name, seeds)
        for ratio in chosen_ratios
        for method in chosen_methods
        for recovery in (p.recovery, *p.recoveries)
    ]
    return sorted(found, key=lambda trial: trial.ratio not in p.first)  # of all networks, and in this order within both


def portrait_spec(name: str, seeds: Iterable[int] | None = None, ratio: float = 0.5, layer: str = "") -> Portrait:
    """One layer of the first dense network of a profile, as each method of `PORTRAYED` prunes it.

    Args:
        layer: by default that of the profile.
    """
    p = profile(name)
    methods = tuple(method for method in p.methods if method in PORTRAYED)
    return Portrait(dense_specs(name, seeds)[0], layer or p.layer, ratio, methods, p.search)


def portrait_specs(name: str, seeds: Iterable[int] | None = None) -> list[Portrait]:
    """The portraits of a profile: those of `Profile.portraits` if its first seed is chosen, or that of its layer.

    Example:
        >>> [len(portrait_specs(name)) for name in ("quick", "quick-beyond", "beyond-choice")]
        [1, 13, 0]
    """
    p = profile(name)
    if p.portraits:
        first_seed = p.seeds[0]
        return [
            portrait_spec(name, [first_seed], layer=layer)
            for layer in p.portraits
            if first_seed in _chosen_seeds(p, seeds)
        ]
    return [] if p.removals else [portrait_spec(name, seeds)]


def removal_specs(name: str, seeds: Iterable[int] | None = None) -> list[Removal]:
    """The removals of a profile, without fine-tuning.

    Example:
        >>> len(removal_specs("quick-beyond", seeds=[0]))
        5
    """
    p = profile(name)
    return [
        _removal(p, dense, method, ratio, draw)
        for dense in dense_specs(name, seeds)
        for ratio in p.removal_ratios
        for method in p.removals
        for draw in range(p.draws if method == "random" else 1)
    ]


def specs(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> list[Spec]:
    """All specs of a profile, or those of some trials, in the order in which one process runs them.

    A dense network stands right before its first trial, so that an interrupted study has whole comparisons. If neither
    methods nor ratios are chosen, its removals at a ratio of `Profile.first` stand before its trials at these, the
    others before the other trials, and the portraits come last.
    """
    p, whole = profile(name), methods is None and ratios is None
    pruned: list[Removal | Trial] = [
        *(removal_specs(name, seeds) if whole else []),
        *trial_specs(name, seeds, methods, ratios),
    ]
    if not pruned:
        return [*dense_specs(name, seeds)]
    denses = dense_specs(name, seeds)
    pruned.sort(key=lambda spec: (spec.ratio not in p.first, denses.index(spec.dense)))
    ordered: list[Spec] = []
    for spec in pruned:
        if spec.dense not in ordered:
            ordered += [spec.dense, *([Clouds(spec.dense, p.layer, CLOUDS_RATIO)] if whole and p.removals else [])]
        ordered.append(spec)
    return [*ordered, *portrait_specs(name, seeds)] if whole else ordered


def companion_specs(name: str, which: str, seeds: Iterable[int] | None = None) -> tuple[str, list[Spec]]:
    """Name and specs of a companion profile ("" and none if there is none), without the portrait of its layer.

    Args:
        which: one of `COMPANIONS`.
    """
    companion = getattr(profile(name), which)
    if not companion:
        return "", []
    shown = profile(companion).portraits
    return companion, [s for s in specs(companion, seeds) if not isinstance(s, Portrait) or s.layer in shown]


def with_companions(name: str, seeds: Iterable[int] | None = None) -> dict[str, list[Spec]]:
    """Profile -> specs, of a profile and of all its companions: everything that its book shows.

    Example:
        >>> list(with_companions("quick"))
        ['quick', 'quick-ablation', 'quick-recovery', 'quick-beyond', 'quick-explored']
    """
    companions = dict(companion_specs(name, which, seeds) for which in COMPANIONS)
    return {name: specs(name, seeds)} | {other: wanted for other, wanted in companions.items() if other}


def variant(trial: Trial | Removal) -> str:
    """The study's name of a trial's method, see `Profile.methods`; the budget of a search does not matter.

    Example:
        >>> variant(trial_specs("quick", methods=["pointed"])[0])
        'pointed'
    """
    options = {name: value for name, value in trial.options.items() if name not in _BUDGET}
    names = (name for name, known in VARIANTS.items() if known == (trial.method, options))
    end = COMPENSATED if isinstance(trial, Trial) and trial.compensation else ""
    return next(names, f"{trial.method} {options}") + end


def describe(spec: Spec) -> str:
    """One line for people.

    Example:
        >>> describe(dense_specs("study")[0])
        'dense vgg16 x1.0 on cifar10, seed 0'
    """
    if isinstance(spec, Trial):
        return f"{variant(spec)} at ratio {spec.ratio}, seed {spec.seed}"
    if isinstance(spec, Removal):
        draw = (spec.seed - spec.dense.seed) // DRAW
        return f"removal by {variant(spec)} at ratio {spec.ratio}, draw {draw}, seed {spec.dense.seed}"
    if isinstance(spec, Clouds):
        return f"clouds of seed {spec.dense.seed}"
    if isinstance(spec, Portrait):
        return f"portrait of {spec.layer} at ratio {spec.ratio}"
    return f"dense {spec.architecture} x{spec.width} on {spec.dataset}, seed {spec.seed}"


_BUDGET = {setting.name for setting in fields(Search)}

CLOUDS_RATIO = 0.5
"""Share of the filters that the covers of `Clouds` remove."""

DRAW = 1000
"""By how much the seeds of two draws differ; draw 0 has that of the dense network, as the trial."""


def _trial(p: Profile, dense: Dense, name: str, ratio: float, recovery: Recipe) -> Trial:
    method, options = method_and_options(name.removesuffix(COMPENSATED), p.search)
    compensation = "convolution" if name.endswith(COMPENSATED) else ""
    return Trial(dense, method, ratio, dense.seed, recovery, options, compensation)


def _removal(p: Profile, dense: Dense, name: str, ratio: float, draw: int) -> Removal:
    method, options = method_and_options(name, p.search)
    return Removal(dense, method, ratio, dense.seed + DRAW * draw, options)


def _chosen(given: Any, known: tuple, what: str, name: str) -> list:
    """The given values, each once; all known ones if none are given."""
    if given is None:
        return list(known)
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"{what} must be a list, got {given!r}")
    chosen = list(dict.fromkeys(given))
    if unknown := [value for value in chosen if value not in known]:
        cure = f"choose from {', '.join(map(str, known))}" if known else "it has none"
        raise ValueError(f"unknown {what} of {name}: {', '.join(map(str, unknown))}; {cure}")
    return chosen


def _chosen_seeds(p: Profile, seeds: Any) -> list[int]:
    """Seeds as plain integers, each once: they are part of keys."""
    given = p.seeds if seeds is None else seeds
    chosen: list[Any] = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(dict.fromkeys(given))
    if not chosen or not all(isinstance(seed, Integral) and 0 <= int(seed) < 2**31 for seed in chosen):
        raise ValueError(f"seeds must be a list of whole numbers from 0, got {seeds!r}")
    return [int(seed) for seed in chosen]
