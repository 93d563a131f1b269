"""The profiles of the study and the trials of each."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace

from topoprune.genetic import Search
from topoprune.study.trial import Dense, Portrait, Trial
from topoprune.training import Recipe

LAYERWISE = ("random", "l1", "l2", "fpgm", "topological")
"""The plain methods that judge a filter within its layer."""


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
"""What the study calls a method -> a method of `selection.select` and its options."""


METHODS = (*LAYERWISE, "activations", "pointed", "magnitude", "taylor")


ABLATIONS = ("topological", "activations", "pointed", *(name for name in VARIANTS if name not in METHODS))


@dataclass(frozen=True)
class Profile:
    """A size of the study.

    Attributes:
        dataset, width: what is trained (VGG-16).
        dense, recovery: recipes of the dense network and of fine-tuning.
        ratios: pruning ratios.
        seeds: by default; a seed stands for one dense network and all its trials.
        layer: the convolution of the portrait.
        first: the ratios that all seeds run before any other.
        methods: names of `VARIANTS`.
        search: budget of the genetic algorithm.
        ablation: the profile of the ablations that its book shows.
        contrast: the profile, if any, that its book shows beside it: dense networks of SGD alone.
        longer: the same, fine-tuned for so long that networks can recover.
        whole: the same, dense networks that held no training image out.
        cutout: the same, of those with cutout.
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
    """The dense networks of a profile."""
    p = profile(name)
    return [Dense(p.dataset, "vgg16", p.width, seed, p.dense) for seed in _seeds(p, seeds)]


def trial_specs(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> list[Trial]:
    """The trials of a profile, or some of them: its first ratios for every seed, then the others.

    Raises:
        ValueError: a method or ratio that the profile does not have.
    """
    p = profile(name)
    chosen_methods = _some(methods, p.methods, f"method of {name}")
    chosen_ratios = _some(ratios, p.ratios, f"ratio of {name}")
    first = [ratio for ratio in chosen_ratios if ratio in p.first]
    others = [ratio for ratio in chosen_ratios if ratio not in p.first]
    return [
        _trial(p, dense, method, ratio)
        for part in (first, others)
        for dense in dense_specs(name, seeds)
        for ratio in part
        for method in chosen_methods
    ]


def _some(given: Iterable | None, known: tuple, what: str) -> list:
    chosen = list(known if given is None else dict.fromkeys(given))
    if unknown := [value for value in chosen if value not in known]:
        raise ValueError(f"unknown {what}: {unknown[0]}; choose from {', '.join(map(str, known))}")
    return chosen


def portrait_spec(name: str, seeds: Iterable[int] | None = None, ratio: float = 0.5) -> Portrait:
    """One layer of the first dense network, as each plain method prunes it."""
    p = profile(name)
    methods = tuple(method for method in p.methods if method in LAYERWISE)
    return Portrait(dense_specs(name, seeds)[0], p.layer, ratio, methods, p.search)


def specs(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> list[Dense | Trial | Portrait]:
    """Everything of a profile, or some of its trials, in the order in which one process runs it.

    Each dense network stands before the first trial that prunes it, so that a study which is cut
    off has whole comparisons. The portrait belongs to the whole. A profile without methods has dense
    networks alone.
    """
    ordered: list[Dense | Trial | Portrait] = []
    for trial in trial_specs(name, seeds, methods, ratios):
        ordered += [trial] if trial.dense in ordered else [trial.dense, trial]
    if not profile(name).methods:
        return [*dense_specs(name, seeds)]
    return [*ordered, portrait_spec(name, seeds)] if methods is ratios is None else ordered


def variant(trial: Trial) -> str:
    """What the study calls the method of a trial: its name in `VARIANTS`, where it has one."""
    options = {name: value for name, value in trial.options.items() if name not in _BUDGET}
    named = (name for name, known in VARIANTS.items() if known == (trial.method, options))
    return next(named, f"{trial.method} {options}")


def describe(spec: Dense | Trial | Portrait) -> str:
    """One line for people."""
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


def _seeds(p: Profile, seeds: Iterable[int] | None) -> list[int]:
    given = p.seeds if seeds is None else seeds
    chosen = list(given) if isinstance(given, Iterable) else [given]
    whole = all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in chosen)
    if not (chosen and whole and isinstance(given, Iterable)):
        raise ValueError(f"seeds must be a list of whole numbers from 0, got {seeds!r}")
    return list(dict.fromkeys(chosen))
