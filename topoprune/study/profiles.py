"""The methods that the study compares, and its profiles: the sizes in which it can be run."""

from dataclasses import dataclass, field, replace

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
    "functional": ("topological", {"space": "functional"}),
    "functional farthest": ("topological", {"space": "functional", "search": "farthest"}),
    "cover": ("topological", {"space": "functional", "search": "cover"}),
    "merge": ("topological", {"space": "functional", "search": "merge"}),
    "mass": ("l2", {"space": "functional"}),
    "qr": ("qr", {}),
    "obs": ("obs", {}),
    "folding": ("folding", {}),
}
"""The study's name of a method -> a method of `selection.select` and its options."""

COMPENSATED = ", compensated"
"""End of the name of a method whose networks are refitted by convolutions before fine-tuning."""


METHODS = (*LAYERWISE, "activations", "pointed", "magnitude", "taylor")


FUNCTIONAL_CHOICE = "cover"
"""The choice by what channels compute that stands for all: the best of three on networks that count in no claim."""


CHOICES = (
    *LAYERWISE,
    "farthest",
    "functional",
    "functional farthest",
    "cover",
    "merge",
    "qr",
    "obs",
    "folding",
)
"""The choices that are compared before fine-tuning."""


ABLATIONS = (
    "topological",
    "activations",
    "pointed",
    *(name for name, (method, _) in VARIANTS.items() if method == "topological" and name not in (*METHODS, *CHOICES)),
    "farthest",
)


PORTRAYED = (*LAYERWISE, FUNCTIONAL_CHOICE, "qr")
"""The choices that a portrait shows, where its profile has them."""


CONVOLUTIONS = tuple(f"features.{index}" for index in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40))
"""The convolutions of VGG-16."""


@dataclass(frozen=True)
class Profile:
    """A size of the study.

    Attributes:
        dataset, width: of the dense networks (VGG-16).
        dense, recovery: recipes of the dense networks and of fine-tuning.
        recoveries: more recipes of fine-tuning, with each of which every trial is run as well.
        ratios: pruning ratios.
        seeds: by default; a seed stands for one dense network and all of its trials.
        layer: the convolution of the portrait, or of the barcodes.
        first: the ratios that all seeds run before any other.
        methods: names of `VARIANTS`, with `COMPENSATED` or without; none for a profile of dense networks alone.
        removals: names of `VARIANTS` that are removed and refitted without fine-tuning.
        removal_ratios: pruning ratios of these.
        draws: of a random method among these.
        search: budget of the genetic algorithm, see `genetic.Search`.
        ablation: companion with variants of the topological method.
        contrast: companion with dense networks trained by SGD alone.
        longer: companion that is fine-tuned long enough for networks to recover.
        whole: companion with dense networks that held no training image out.
        cutout: the same, trained with cutout.
        beyond: companion with what lies beyond the thesis.
        wide: companion with the same on networks of full width, where those of `beyond` are narrower.
        explored: companion with what was tried beside it, and enters no claim.
        gentle: companion that fine-tunes networks of full width more gently, and enters no claim.
        gentle_narrow: companion that does so with narrow networks.
        mass: companion in which the mass of a channel alone chooses.
        muon: companion of narrow networks that Muon trained, where those of `beyond` were trained by SGD alone.
        portraits: convolutions of the first seed that are portrayed; without any, `layer` is, unless there are
            removals.
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
    removals: tuple[str, ...] = ()
    removal_ratios: tuple[float, ...] = ()
    draws: int = 1
    beyond: str = ""
    wide: str = ""
    portraits: tuple[str, ...] = ()
    recoveries: tuple[Recipe, ...] = ()
    explored: str = ""
    gentle: str = ""
    gentle_narrow: str = ""
    mass: str = ""
    muon: str = ""


COMPANIONS = (
    *("ablation", "contrast", "longer", "whole", "cutout"),
    *("beyond", "wide", "explored", "gentle", "gentle_narrow", "muon", "mass"),
)
"""Fields of a `Profile` that name another profile, which the book shows beside it."""


_QUICK = Profile(
    dataset="digits",
    width=0.125,
    seeds=(0, 1),
    ratios=(0.5, 0.9),
    dense=Recipe(epochs=10, batch=128, peak_rate=0.2),
    recovery=Recipe(epochs=3, batch=128, peak_rate=0.05),
    layer="features.24",
    search={"population": 24, "generations": 8},
    ablation="quick-ablation",
    longer="quick-recovery",
    beyond="quick-beyond",
    explored="quick-explored",
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
    beyond="pilot-beyond",
    explored="pilot-explored",
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
    beyond="beyond-quarter",
    wide="beyond",
    explored="beyond-explored",
    gentle="beyond-gentle",
    gentle_narrow="beyond-gentle-quarter",
    mass="beyond-mass",
    muon="beyond-muon",
)


_WHOLE = replace(_STUDY, dataset="cifar10-whole", methods=(), whole="", cutout="")


_RECOVERY = replace(
    _PILOT,
    ratios=(0.3,),
    recovery=replace(_PILOT.recovery, epochs=20),
    methods=("random", "l1", "l2", "fpgm", "topological"),
)


def _compensated(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{COMPENSATED}" for name in names)


_BEYOND_QUARTER = replace(
    _PILOT,
    seeds=(*range(10, 15), *range(17, 20), 22, 23),
    ratios=(0.5, 0.3),
    first=(0.5,),
    methods=(*LAYERWISE, FUNCTIONAL_CHOICE, "qr", *_compensated("random", "fpgm", FUNCTIONAL_CHOICE, "qr")),
    removals=CHOICES,
    removal_ratios=(0.3, 0.5, 0.7, 0.8, 0.9),
    draws=3,
    ablation="",
    longer="",
    beyond="",
    explored="",
    portraits=CONVOLUTIONS,
)


_BEYOND_CHOICE = replace(
    _BEYOND_QUARTER,
    seeds=(20, 21),
    ratios=(0.5,),
    methods=("random", "merge", *_compensated("random", "merge")),
    removals=("cover", "merge", "functional farthest"),
    removal_ratios=(0.3, 0.5, 0.7, 0.9),
    portraits=(),
)


def _keeping(recovery: Recipe) -> tuple[Recipe, ...]:
    """Recipes that could keep more of what compensation gained than `recovery` does."""
    taught = replace(recovery, distillation=0.9)
    return taught, replace(taught, peak_rate=0.3 * taught.peak_rate, muon_rate=0.3 * taught.muon_rate, warmup=0.0)


_BEYOND_EXPLORED = replace(
    _BEYOND_QUARTER,
    seeds=tuple(range(14, 20)),
    ratios=(0.5,),
    methods=(FUNCTIONAL_CHOICE, *_compensated(FUNCTIONAL_CHOICE)),
    recoveries=_keeping(_PILOT.recovery),
    removals=("random", "l1", "fpgm", FUNCTIONAL_CHOICE, "qr"),
    removal_ratios=(0.1, 0.2),
    draws=1,
    portraits=(),
)


_BEYOND = replace(
    _BEYOND_QUARTER,
    width=1.0,
    seeds=(3, 4, 5),
    dense=_STUDY.dense,
    recovery=_STUDY.recovery,
    draws=5,
    portraits=(),  # at full width they would fill megabytes
)


_BEYOND_GENTLE = replace(
    _BEYOND,
    seeds=(3,),
    ratios=(0.3, 0.5),
    first=(),
    methods=(*_BEYOND_EXPLORED.methods, "random"),
    recoveries=_keeping(_STUDY.recovery)[-1:],
    removals=(FUNCTIONAL_CHOICE,),
    removal_ratios=(0.3, 0.5),
)


_BEYOND_GENTLE_QUARTER = replace(
    _BEYOND_EXPLORED,
    seeds=(28, 29, 30),
    ratios=(0.3,),
    recoveries=_BEYOND_EXPLORED.recoveries[-1:],
    removals=(FUNCTIONAL_CHOICE,),
    removal_ratios=(0.3,),
)


_BEYOND_MASS = replace(
    _BEYOND_QUARTER,
    seeds=_BEYOND_GENTLE_QUARTER.seeds,
    ratios=(0.5,),
    methods=("random", "mass", FUNCTIONAL_CHOICE),
    removals=("random", "mass", FUNCTIONAL_CHOICE),
    removal_ratios=(0.5,),
    portraits=(),
)


_BEYOND_MUON = replace(
    _BEYOND_QUARTER,
    seeds=(24, 25, 26, 27),
    ratios=(0.5,),
    dense=replace(_BEYOND_QUARTER.dense, muon_rate=0.1),
    methods=("random", "l1"),
    removals=(*LAYERWISE, FUNCTIONAL_CHOICE, "qr"),
    removal_ratios=(0.5,),
    portraits=(),
)


PROFILES = {
    "quick": _QUICK,
    "quick-ablation": replace(_QUICK, seeds=(0,), ratios=(0.5,), methods=ABLATIONS),
    "quick-recovery": replace(
        _QUICK, seeds=(0,), ratios=(0.5,), methods=_RECOVERY.methods, recovery=replace(_QUICK.recovery, epochs=8)
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
    "beyond-choice": _BEYOND_CHOICE,
    "beyond-choice-slow": replace(_BEYOND_CHOICE, recovery=replace(_PILOT.recovery, peak_rate=0.015)),
    "beyond-quarter": _BEYOND_QUARTER,
    "beyond-explored": _BEYOND_EXPLORED,
    "pilot-beyond": replace(_BEYOND_QUARTER, seeds=(10,)),
    "pilot-explored": replace(_BEYOND_EXPLORED, seeds=(10,)),
    "beyond": _BEYOND,
    "beyond-gentle": _BEYOND_GENTLE,
    "beyond-gentle-quarter": _BEYOND_GENTLE_QUARTER,
    "beyond-muon": _BEYOND_MUON,
    "beyond-mass": _BEYOND_MASS,
    "quick-beyond": replace(
        _BEYOND_QUARTER,
        dataset="digits",
        width=_QUICK.width,
        seeds=(0,),
        ratios=(0.5,),
        dense=_QUICK.dense,
        recovery=_QUICK.recovery,
        search=_QUICK.search,
        methods=(
            *("random", "fpgm", "topological", FUNCTIONAL_CHOICE, "qr"),
            *_compensated("random", "fpgm", FUNCTIONAL_CHOICE, "qr"),
        ),
        removals=("random", "fpgm", "topological", FUNCTIONAL_CHOICE, "qr"),
        removal_ratios=(0.5,),
        draws=1,
    ),
    "quick-explored": replace(
        _BEYOND_EXPLORED,
        dataset="digits",
        width=_QUICK.width,
        seeds=(0,),
        dense=_QUICK.dense,
        recovery=_QUICK.recovery,
        recoveries=_keeping(_QUICK.recovery),
        search=_QUICK.search,
        removals=(FUNCTIONAL_CHOICE,),
    ),
}


def profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        ValueError: unknown profile.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose from {', '.join(PROFILES)}")
    return PROFILES[name]


def method_and_options(name: str, search: dict) -> tuple[str, dict]:
    """Method and options of a variant; a search of diagrams takes its budget from `search`.

    >>> method_and_options("h0", {"generations": 60})
    ('topological', {'generations': 60, 'dimensions': [0]})
    """
    method, options = VARIANTS[name]
    needs_budget = method == "topological" and options.get("search") not in ("cover", "merge")
    return method, {**(search if needs_budget else {}), **options}
