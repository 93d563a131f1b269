"""The grid of trials of each profile: what the store has is loaded, what it lacks is run."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, as_completed
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from topoprune import progress
from topoprune.genetic import Search
from topoprune.store import Store, StoreError, is_locked
from topoprune.training import Recipe
from topoprune.trial import Dense, Portrait, Record, Trial, forget, reached, run, run_folder, spec_key

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
"""What the study calls a method -> a method of `pruners.select` and its options."""

METHODS = (*LAYERWISE, "activations", "pointed", "magnitude", "taylor")
ABLATIONS = ("topological", "activations", "pointed",
             *(name for name in VARIANTS if name not in METHODS))


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
    dataset="digits", width=0.125, seeds=(0, 1), ratios=(0.5, 0.9),
    dense=Recipe(epochs=10, batch=128, peak_rate=0.2),
    recovery=Recipe(epochs=3, batch=128, peak_rate=0.05),
    layer="features.24", search={"population": 32, "generations": 15}, ablation="quick-ablation",
    longer="quick-recovery")
_PILOT = Profile(
    dataset="cifar10", width=0.25, seeds=(0,), ratios=(0.3, 0.5, 0.7, 0.9),
    dense=Recipe(epochs=14), recovery=Recipe(epochs=5, peak_rate=0.05),
    layer="features.24", search={"population": 64, "generations": 60}, ablation="pilot-ablation",
    longer="pilot-recovery")
_STUDY = Profile(
    dataset="cifar10", width=1.0, seeds=(0, 1, 2), ratios=(0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    first=(0.5, 0.8, 0.9), dense=Recipe(epochs=20, batch=512, peak_rate=0.3, muon_rate=0.1),
    recovery=Recipe(epochs=5, peak_rate=0.05, muon_rate=0.05),
    layer="features.24", search={"population": 64, "generations": 60}, ablation="ablation",
    contrast="study-sgd", longer="recovery", whole="study-whole", cutout="study-cutout")
_WHOLE = replace(_STUDY, dataset="cifar10-whole", methods=(), whole="", cutout="")
_RECOVERY = replace(_PILOT, ratios=(0.3,), recovery=replace(_PILOT.recovery, epochs=20),
                    methods=("random", "l1", "l2", "fpgm", "topological"))
PROFILES = {
    "quick": _QUICK,
    "quick-ablation": replace(_QUICK, seeds=(0,), ratios=(0.5,), methods=ABLATIONS),
    "quick-recovery": replace(_QUICK, seeds=(0,), ratios=(0.5,), methods=_RECOVERY.methods,
                              recovery=replace(_QUICK.recovery, epochs=12)),
    "pilot": _PILOT,
    "pilot-ablation": replace(_PILOT, ratios=(0.5,), methods=ABLATIONS),
    "pilot-recovery": _RECOVERY,
    "study": _STUDY,
    "study-whole": _WHOLE,
    "study-cutout": replace(_WHOLE, seeds=tuple(range(7)), dense=replace(_WHOLE.dense, cutout=10)),
    "study-sgd": replace(_STUDY, seeds=(0,), ratios=(0.9,), first=(), contrast="", whole="", cutout="",
                         dense=Recipe(epochs=20, peak_rate=0.4)),
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


def trial_specs(name: str, seeds: Iterable[int] | None = None, methods: Iterable[str] | None = None,
                ratios: Iterable[float] | None = None) -> list[Trial]:
    """The trials of a profile, or some of them: its first ratios for every seed, then the others.

    Raises:
        ValueError: a method or ratio that the profile does not have.
    """
    p = profile(name)
    chosen_methods = _some(methods, p.methods, f"method of {name}")
    chosen_ratios = _some(ratios, p.ratios, f"ratio of {name}")
    first = [ratio for ratio in chosen_ratios if ratio in p.first]
    others = [ratio for ratio in chosen_ratios if ratio not in p.first]
    return [_trial(p, dense, method, ratio)
            for part in (first, others) for dense in dense_specs(name, seeds)
            for ratio in part for method in chosen_methods]


def _some(given: Iterable | None, known: tuple, what: str) -> list:
    chosen = list(known if given is None else dict.fromkeys(given))
    if unknown := [value for value in chosen if value not in known]:
        raise ValueError(f"unknown {what}: {unknown[0]}; choose from {', '.join(map(str, known))}")
    return chosen


def beside(name: str, which: str, seeds: Iterable[int] | None = None, device: str | None = None,
           force: bool = False) -> list[Record]:
    """The records of a profile that a book shows beside its own; none where it has no such profile.

    Args:
        which: "ablation", "contrast", "longer", "whole" or "cutout", as of `Profile`.
    """
    if not (other := getattr(profile(name), which)):
        return []
    return records(other, [*dense_specs(other, seeds), *trial_specs(other, seeds)], device, force)


def portrait_spec(name: str, seeds: Iterable[int] | None = None, ratio: float = 0.5) -> Portrait:
    """One layer of the first dense network, as each plain method prunes it."""
    p = profile(name)
    methods = tuple(method for method in p.methods if method in LAYERWISE)
    return Portrait(dense_specs(name, seeds)[0], p.layer, ratio, methods, p.search)


def specs(name: str, seeds: Iterable[int] | None = None, methods: Iterable[str] | None = None,
          ratios: Iterable[float] | None = None) -> list[Dense | Trial | Portrait]:
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


def records(name: str, wanted: Iterable[Dense | Trial | Portrait] | None = None,
            device: str | None = None, force: bool = False,
            executor: Executor | None = None) -> list[Record]:
    """The records of `wanted` (by default of the whole profile), run where the store lacks them.

    A finished record is stored at once, so an interrupted call loses no more than the current
    epoch. With the environment variable `TOPOPRUNE_NO_RUN` nothing is run: the records that are
    there are returned, and `tables.coverage` says what lacks.

    Args:
        name: of the profile, whose records file is used.
        wanted: specs of this profile.
        device: as for `trial.run`.
        force: forget what the store and the cache have of these, and run them again; the records
            file as it was stays beside it, as .bak. To go on after an interruption leave it out.
        executor: where runs go, side by side: any `concurrent.futures.Executor` whose workers share
            the cache folder. Dense networks first; a run that fails keeps no other from its record.

    Raises:
        StoreError: the records file is damaged, or has none of `wanted` and must not run them.
        ValueError, data.DataError: as `trial.run`.
        RunError: runs on the executor failed; the records of all others are stored.
    """
    wanted = list(specs(name) if wanted is None else wanted)
    store = records_store(name)
    if force:
        if busy := [spec for spec in wanted if is_locked(run_folder(spec))]:
            raise StoreError(f"{describe(busy[0])} is running in another process: wait for it, or stop "
                             "it, before it is forced")
        store.drop({spec_key(spec) for spec in wanted})
        for spec in wanted:
            forget(spec)
    found = store.load()
    missing = [spec for spec in wanted if spec_key(spec) not in found]
    if missing and os.environ.get("TOPOPRUNE_NO_RUN"):
        if len(missing) == len(wanted):
            raise StoreError(f"{store.path} has none of {len(wanted)} records (first: "
                             f"{describe(missing[0])}): run `python -m topoprune run --profile "
                             f"{name}`, or unset TOPOPRUNE_NO_RUN")
        missing = []
    with tqdm(total=len(missing), desc=name, unit="run", disable=None) as bar:
        for made in _carried_out(missing, device, store.path, executor):
            record = made.to_json()
            store.append(record)
            found[record["key"]] = record
            if not isinstance(made.spec, Dense):  # the dense network is needed again
                forget(made.spec)
            bar.update()
    return [Record.from_json(found[spec_key(spec)]) for spec in wanted if spec_key(spec) in found]


class RunError(RuntimeError):
    """Some runs failed; the message names the first and its cause."""


def _carried_out(todo: list, device: str | None, path: Path,
                 executor: Executor | None) -> Iterator[Record]:
    """The record of each spec, as it is finished."""
    if executor is None:
        yield from (run(spec, device, path) for spec in todo)
        return
    # What is pruned is trained first: the trials share it.
    for dense in (True, False):
        yield from _side_by_side([spec for spec in todo if isinstance(spec, Dense) is dense],
                                 device, path, executor)


def _side_by_side(todo: list, device: str | None, path: Path, executor: Executor) -> Iterator[Record]:
    futures = {executor.submit(run, spec, device, path): spec for spec in todo}
    failed = []
    for future in as_completed(futures):
        if error := future.exception():
            failed.append((futures[future], error))
        else:
            yield future.result()
    if failed:
        died = [one for one in failed if isinstance(one[1], BrokenExecutor)]  # which can be mended
        spec, error = (died or failed)[0]
        raise RunError(f"{len(failed)} of {len(todo)} runs failed, the first: {describe(spec)}: "
                       f"{error!r}; the others are stored, the same command runs these again"
                       ) from error


def status(name: str, seeds: Iterable[int] | None = None, methods: Iterable[str] | None = None,
           ratios: Iterable[float] | None = None) -> dict:
    """What the store has and lacks of `specs`, and how the runs fare that share this cache.

    Returns:
        path: of the records file.
        done, missing: lists of descriptions.
        runs: for each missing one its description as `run`, how far it `reached` ("" where nothing
            is there), and what `progress.state` says of its folder.
        workers: processes that are at it now.
        seconds_left: estimate from the stored records' own times of the same kind and method, shared
            out among the workers; None while nothing is there to estimate from.
    """
    store = records_store(name)
    found = store.load()
    wanted = specs(name, seeds, methods, ratios)
    missing = [spec for spec in wanted if spec_key(spec) not in found]
    runs = [{"run": describe(spec), "reached": _reached(spec), **progress.state(run_folder(spec))}
            for spec in missing]
    workers = {(run["host"], run["process"]) for run in runs if run["state"] == "running"}
    left = _estimate(missing, runs, [Record.from_json(line) for line in found.values()])
    return {"path": str(store.path), "done": [describe(s) for s in wanted if spec_key(s) in found],
            "missing": [describe(s) for s in missing], "runs": runs, "workers": len(workers),
            "seconds_left": left and left / max(1, len(workers))}


def status_lines(state: dict) -> list[str]:
    """What `status` found, for people."""
    left, workers = state["seconds_left"], state["workers"]
    counts = Counter(run["state"] for run in state["runs"])
    counted = "".join(f", {counts[name]} {name}" for name in ("running", "failed", "dead", "waiting")
                      if counts[name])
    return [f"{state['path']}: {len(state['done'])} done, {len(state['missing'])} missing{counted}",
            *(f"  {_line(run)}" for run in state["runs"]),
            "time left: unknown, no record to estimate from" if left is None else
            f"time left: about {left / 60:.0f} min with {max(1, workers)} at work, from the records' "
            "own times"]


def describe(spec: Dense | Trial | Portrait) -> str:
    """One line for people."""
    if isinstance(spec, Trial):
        return f"{variant(spec)} at ratio {spec.ratio}, seed {spec.seed}"
    if isinstance(spec, Portrait):
        return f"portrait of {spec.layer} at ratio {spec.ratio}"
    return f"dense {spec.architecture} x{spec.width} on {spec.dataset}, seed {spec.seed}"


def records_store(name: str) -> Store:
    """The store of a profile: `TOPOPRUNE_RESULTS`, or the published records of this checkout."""
    return Store(results_folder() / f"{name}.jsonl")


def results_folder() -> Path:
    """`TOPOPRUNE_RESULTS`, else `book/results` of the checkout, else `results` here."""
    if given := os.environ.get("TOPOPRUNE_RESULTS"):
        return Path(given)
    published = Path(__file__).resolve().parents[1] / "book" / "results"
    return published if published.parent.is_dir() else Path("results")


def check_parameters(names: dict) -> None:
    """Refuse a notebook's parameters that no chapter has; papermill itself would go on.

    Args:
        names: the notebook's `globals()` after its imports, before it assigns anything.

    Raises:
        ValueError: naming the unknown parameter.
    """
    given = {name for name, value in names.items()
             if not name.startswith("_") and name not in ("In", "Out")
             and not isinstance(value, ModuleType) and not callable(value)}
    if unknown := sorted(given - {"profile", "device", "seeds", "force"}):
        raise ValueError(f"unknown notebook parameter {', '.join(unknown)}: a chapter takes "
                         "profile, device, seeds and force")


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


def _reached(spec: Dense | Trial | Portrait) -> str:
    """How far a run came, in words; of a trial that waits for its dense network nothing."""
    at = reached(spec)
    if isinstance(spec, Dense):
        return f"epoch {at['dense']} of {spec.recipe.epochs}" if at["dense"] else ""
    if not run_folder(spec).exists():
        return ""
    if at["dense"] < spec.dense.recipe.epochs:
        return f"dense network, epoch {at['dense']} of {spec.dense.recipe.epochs}"
    if isinstance(spec, Portrait):
        return "portrait"
    if at["selected"]:
        return f"fine-tuning, epoch {at['tuned']} of {spec.recovery.epochs}"
    return f"selection, layer {at['layers']}" if at["layers"] else "selection"


def _line(run: dict) -> str:
    """One run, as `status` found it."""
    parts = [f"{run['state']}: {run['run']}"]
    parts += [run["reached"]] if run["reached"] else []
    if run["state"] == "waiting":
        return ", ".join(parts)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["since"]))
    parts.append(f"process {run['process']} on {run['host']}, {run['device']}, since {since}")
    if run["state"] == "dead":
        parts.append("which ended without a word: `run` goes on from there")
    return ", ".join(parts) + (f": {run['error']}" if "error" in run else "")


def _estimate(missing: list, runs: list[dict], found: list[Record]) -> float | None:
    """Seconds of work that are left, if one process does it all."""
    total = 0.0
    for spec, seen in zip(missing, runs, strict=True):
        alike = [r.provenance["seconds"] for r in found if _label(r.spec) == _label(spec)]
        alike = alike or [r.provenance["seconds"] for r in found]
        if not alike:
            return None
        spent = time.time() - seen["since"] if seen["state"] == "running" else 0.0
        total += max(0.0, sum(alike) / len(alike) - spent)
    return total


def _label(spec: Dense | Trial | Portrait) -> tuple:
    return type(spec).__name__, getattr(spec, "method", None), getattr(spec, "ratio", None)
