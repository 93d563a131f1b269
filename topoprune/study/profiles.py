"""The profiles of the study and the trials of each."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from numbers import Integral

from topoprune.genetic import Search
from topoprune.study.trial import Dense, Portrait, Spec, Trial
from topoprune.training import Recipe

LAYERWISE = ("random", "l1", "l2", "fpgm", "topological")
"""Methods that judge a filter within its layer, without options."""


VARIANTS: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in LAYERWISE},
    "activations": ("topological", {"space": "activations"}),
    "pointed": ("topological", {"pointed": True}),
    "magnitude": ("magnitude", {}),
    "taylor": ("taylor", {}),
    "folded": ("topological", {"space": "folded"}),
    "h0": ("topological", {"dimensions": [0]}),
    "cosine": ("topological", {"metric": "cosine"}),
    "correlation": ("topological", {"metric": "correlation"}),
    "bottleneck": ("topological", {"distance": "bottleneck"}),
    "landscape": ("topological", {"distance": "landscape"}),
    "betti": ("topological", {"distance": "betti"}),
    "entropy": ("topological", {"distance": "entropy"}),
    "random search": ("topological", {"search": "random"}),
    "greedy": ("topological", {"search": "greedy"}),
    "farthest": ("topological", {"search": "farthest"}),
}
"""The study's name of a method -> a method of `selection.select` and its options."""


METHODS = (*LAYERWISE, "activations", "pointed", "magnitude", "taylor")


ABLATIONS = ("topological", "activations", "pointed", *(name for name in VARIANTS if name not in METHODS))


@dataclass(frozen=True)
class Profile:
    """A size of the study.

    Attributes:
        dataset, width: of the dense networks (VGG-16).
        dense, recovery: recipes of the dense networks and of fine-tuning.
        ratios: pruning ratios.
        seeds: by default; a seed stands for one dense network and all of its trials.
        layer: the convolution of the portrait.
        first: the ratios that all seeds run before any other.
        methods: names of `VARIANTS`; none for a profile of dense networks alone.
        search: budget of the genetic algorithm, see `genetic.Search`.
        ablation: companion with variants of the topological method.
        contrast: companion with dense networks trained by SGD alone.
        longer: companion that is fine-tuned long enough for networks to recover.
        whole: companion with dense networks that held no training image out.
        cutout: the same, trained with cutout.
    """

    dataset: str
    width: float
    dense: Recipe
    recovery: Recipe
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    layer: str
    first: tuple[float, ...] = ()
    methods: tuple[str, ...] = METHODS
    search: dict = field(default_factory=dict)
    ablation: str = ""
    contrast: str = ""
    longer: str = ""
    whole: str = ""
    cutout: str = ""


COMPANIONS = ("ablation", "contrast", "longer", "whole", "cutout")
"""Fields of a `Profile` that name another profile, which the book shows beside it."""


_QUICK = Profile(
    dataset="digits",
    width=0.125,
    seeds=(0, 1),
    ratios=(0.5, 0.9),
    dense=Recipe(epochs=10, batch=128, peak_rate=0.2),
    recovery=Recipe(epochs=3, batch=128, peak_rate=0.05),
    layer="features.24",
    search={"population": 32, "generations": 15},
    ablation="quick-ablation",
    longer="quick-recovery",
)


_PILOT = Profile(
    dataset="cifar10",
    width=0.25,
    seeds=(0,),
    ratios=(0.3, 0.5, 0.7, 0.9),
    dense=Recipe(epochs=14),
    recovery=Recipe(epochs=5, peak_rate=0.05),
    layer="features.24",
    search={"population": 64, "generations": 60},
    ablation="pilot-ablation",
    longer="pilot-recovery",
)


_STUDY = Profile(
    dataset="cifar10",
    width=1.0,
    seeds=(0, 1, 2),
    ratios=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    first=(0.5, 0.8, 0.9),
    dense=Recipe(epochs=20, batch=512, peak_rate=0.3, muon_rate=0.1),
    recovery=Recipe(epochs=5, peak_rate=0.05, muon_rate=0.05),
    layer="features.24",
    search={"population": 64, "generations": 60},
    ablation="ablation",
    contrast="study-sgd",
    longer="recovery",
    whole="study-whole",
    cutout="study-cutout",
)


_WHOLE = replace(_STUDY, dataset="cifar10-whole", methods=(), whole="", cutout="")


_RECOVERY = replace(
    _PILOT,
    ratios=(0.3,),
    recovery=replace(_PILOT.recovery, epochs=20),
    methods=("random", "l1", "l2", "fpgm", "topological"),
)


PROFILES = {
    "quick": _QUICK,
    "quick-ablation": replace(_QUICK, seeds=(0,), ratios=(0.5,), methods=ABLATIONS),
    "quick-recovery": replace(
        _QUICK, seeds=(0,), ratios=(0.5,), methods=_RECOVERY.methods, recovery=replace(_QUICK.recovery, epochs=12)
    ),
    "pilot": _PILOT,
    "pilot-ablation": replace(_PILOT, ratios=(0.5,), methods=ABLATIONS),
    "pilot-recovery": _RECOVERY,
    "study": _STUDY,
    "study-whole": _WHOLE,
    "study-cutout": replace(_WHOLE, seeds=tuple(range(7)), dense=replace(_WHOLE.dense, cutout=10)),
    "study-sgd": replace(
        _STUDY,
        seeds=(0,),
        ratios=(0.9,),
        first=(),
        contrast="",
        whole="",
        cutout="",
        dense=Recipe(epochs=20, peak_rate=0.4),
    ),
    "ablation": replace(_PILOT, seeds=(0, 1, 2, 3, 4), ratios=(0.5,), methods=ABLATIONS),
    "recovery": replace(_RECOVERY, seeds=(0, 1, 2)),
}


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        ValueError: unknown profile.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose from {', '.join(PROFILES)}")
    return PROFILES[name]


def dense_specs(name: str, seeds: Iterable[int] | None = None) -> list[Dense]:
    """The dense networks of a profile.

    Raises:
        ValueError: seeds that are not whole numbers from 0.

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

    >>> [trial.ratio for trial in trial_specs("quick", seeds=[0], methods=["l1"])]
    [0.5, 0.9]
    """
    p = profile(name)
    chosen_methods = _chosen(methods, p.methods, "methods", name)
    chosen_ratios = _chosen(ratios, p.ratios, "ratios", name)
    first = [ratio for ratio in chosen_ratios if ratio in p.first]
    later = [ratio for ratio in chosen_ratios if ratio not in p.first]
    return [
        _trial(p, dense, method, ratio)
        for part in (first, later)
        for dense in dense_specs(name, seeds)
        for ratio in part
        for method in chosen_methods
    ]


def portrait_spec(name: str, seeds: Iterable[int] | None = None, ratio: float = 0.5) -> Portrait:
    """One layer of the first dense network of a profile, as each method of `LAYERWISE` prunes it."""
    p = profile(name)
    methods = tuple(method for method in p.methods if method in LAYERWISE)
    return Portrait(dense_specs(name, seeds)[0], p.layer, ratio, methods, p.search)


def specs(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> list[Spec]:
    """All specs of a profile, or those of some trials, in the order in which one process runs them.

    A dense network stands right before its first trial, so that an interrupted study has whole comparisons.
    The portrait comes last, if neither methods nor ratios are chosen.
    """
    trials = trial_specs(name, seeds, methods, ratios)
    if not profile(name).methods:
        return [*dense_specs(name, seeds)]
    ordered: list[Spec] = []
    for trial in trials:
        ordered += [trial] if trial.dense in ordered else [trial.dense, trial]
    return [*ordered, portrait_spec(name, seeds)] if methods is ratios is None else ordered


def companion_specs(name: str, which: str, seeds: Iterable[int] | None = None) -> tuple[str, list[Spec]]:
    """Name and specs of a companion profile ("" and none if there is none): dense networks and trials, no portrait.

    Args:
        which: one of `COMPANIONS`.
    """
    companion = getattr(profile(name), which)
    if not companion:
        return "", []
    return companion, [*dense_specs(companion, seeds), *trial_specs(companion, seeds)]


def with_companions(name: str, seeds: Iterable[int] | None = None) -> dict[str, list[Spec]]:
    """Profile -> specs, of a profile and of all its companions: everything that its book shows.

    >>> list(with_companions("quick"))
    ['quick', 'quick-ablation', 'quick-recovery']
    """
    companions = dict(companion_specs(name, which, seeds) for which in COMPANIONS)
    return {name: specs(name, seeds)} | {other: wanted for other, wanted in companions.items() if other}


def variant(trial: Trial) -> str:
    """The study's name of a trial's method, see `VARIANTS`; the budget of a search does not matter.

    >>> variant(trial_specs("quick", methods=["pointed"])[0])
    'pointed'
    """
    options = {name: value for name, value in trial.options.items() if name not in _BUDGET}
    names = (name for name, known in VARIANTS.items() if known == (trial.method, options))
    return next(names, f"{trial.method} {options}")


def describe(spec: Spec) -> str:
    """One line for people.

    >>> describe(dense_specs("study")[0])
    'dense vgg16 x1.0 on cifar10, seed 0'
    """
    if isinstance(spec, Trial):
        return f"{variant(spec)} at ratio {spec.ratio}, seed {spec.seed}"
    if isinstance(spec, Portrait):
        return f"portrait of {spec.layer} at ratio {spec.ratio}"
    return f"dense {spec.architecture} x{spec.width} on {spec.dataset}, seed {spec.seed}"


_BUDGET = {setting.name for setting in fields(Search)}


def _trial(p: Profile, dense: Dense, name: str, ratio: float) -> Trial:
    method, options = VARIANTS[name]
    budget = p.search if method == "topological" else {}
    return Trial(dense, method, ratio, dense.seed, p.recovery, {**budget, **options})


def _chosen(given: Iterable | None, known: tuple, what: str, name: str) -> list:
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


def _chosen_seeds(p: Profile, seeds: Iterable[int] | None) -> list[int]:
    """Seeds as plain integers, each once: they are part of keys."""
    given = p.seeds if seeds is None else seeds
    chosen = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(dict.fromkeys(given))
    if not chosen or not all(isinstance(seed, Integral) and 0 <= seed < 2**31 for seed in chosen):
        raise ValueError(f"seeds must be a list of whole numbers from 0, got {seeds!r}")
    return [int(seed) for seed in chosen]
