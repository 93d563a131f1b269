"""One trial: dense model -> select -> remove -> measure damage -> fine-tune -> record."""

import itertools
import json
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

from topoprune import data as datasets
from topoprune import progress, store
from topoprune.data import Data
from topoprune.models import build
from topoprune.pruners import METHODS, points, selection
from topoprune.surgery import Kept, cost, couplings, remove
from topoprune.training import (
    Recipe,
    accuracy,
    default_device,
    precision,
    recalibrate,
    repeatable,
    train,
)

WITHIN = 0.005
"""Recovered: validation accuracy within this of the dense model's."""

DENSE, SELECTION, TUNED, MADE = ("dense.safetensors", "selection.json", "fine-tuning.safetensors",
                                 "record.json")
"""What a run keeps in its folder until its record is stored."""

SEARCHED = {"generation": 6, "best": 6, "evaluations": 6, "seconds": 3}
"""What a record keeps of each generation of a search, and the digits of what is no whole number."""

TIMES = {"seconds", "selection_seconds", "latency_ms", "images_per_second"}
"""Fields of a result that were timed: two runs of one trial agree in all others."""


@dataclass(frozen=True)
class Dense:
    """A network trained from scratch, shared by all trials that prune it.

    Attributes:
        dataset, architecture: names, see `data.load` and `models.build`.
        width: multiplier of every layer's filters.
        seed: of the initial weights and the data order.
        recipe: how it is trained.
    """

    dataset: str
    architecture: str
    width: float
    seed: int
    recipe: Recipe

    def __post_init__(self):
        if self.recipe.epochs < 1:
            raise ValueError("a dense network needs at least one epoch of training, got 0")


@dataclass(frozen=True)
class Trial:
    """One pruning run; its canonical JSON is its identity.

    Attributes:
        dense: the network that is pruned.
        method: see `pruners.select`.
        ratio: share of filters removed from every layer, in [0, 1).
        seed: of the selection and of the fine-tuning's data order.
        recovery: how the pruned network is fine-tuned.
        options: of the method (JSON values), see `pruners.topological`.
    """

    dense: Dense
    method: str
    ratio: float
    seed: int
    recovery: Recipe
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}: choose from {', '.join(METHODS)}")
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), got {self.ratio}: every layer keeps at "
                             "least one filter")


@dataclass(frozen=True)
class Portrait:
    """One layer of a dense network and what each method keeps of it, for the pictures.

    Attributes:
        dense: the network.
        layer: name of the convolution.
        ratio: share of its filters removed.
        methods: the methods whose choices are drawn.
        options: of the topological method.
    """

    dense: Dense
    layer: str
    ratio: float
    methods: tuple[str, ...]
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What came of a `Dense`, a `Trial` or a `Portrait`.

    Attributes:
        spec: what was asked for.
        result: what was measured (JSON values); the functions of this module say which.
        provenance: commit, versions, device, date and seconds.
    """

    spec: Dense | Trial | Portrait
    result: dict
    provenance: dict

    @property
    def key(self) -> str:
        return spec_key(self.spec)

    def to_json(self) -> dict:
        return {"key": self.key, "kind": type(self.spec).__name__, "spec": plain(self.spec),
                "result": self.result, "provenance": self.provenance}

    @classmethod
    def from_json(cls, record: dict) -> "Record":
        """The record that `to_json` gave.

        Raises:
            store.StoreError: fields that this version does not know, or a key that does not belong
                to the record.
        """
        try:
            made = cls(_KINDS[record["kind"]](record["spec"]), _by_column(record["result"]),
                       record["provenance"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.StoreError(f"record {record.get('key')!r} was written by another version "
                                   f"of topoprune ({error!r}): use that version, or delete its line "
                                   "and run again") from error
        if made.key != record["key"]:
            raise store.StoreError(f"record {record['key']!r} was altered: its content has the key "
                                   f"{made.key!r}; restore the file or delete that line")
        return made


_YOUNGER = {"muon_rate": 0.0, "muon_decay": 0.05, "cutout": 0}
"""Settings that the first records did not know, with the values that leave those as they were."""


def plain(spec: Dense | Trial | Portrait) -> dict:
    """The spec as JSON values; younger settings only where they differ from `_YOUNGER`, so that
    records from before them keep their keys."""
    return json.loads(json.dumps(asdict(spec)), object_hook=lambda fields: {
        name: value for name, value in fields.items() if _YOUNGER.get(name) != value})


def spec_key(spec: Dense | Trial | Portrait) -> str:
    """Short identity of a spec."""
    return store.key({type(spec).__name__: plain(spec)})


def run(spec: Dense | Trial | Portrait, device: str | None = None,
        records: Path | None = None) -> Record:
    """Carry out `spec`; an interrupted run continues from its last finished epoch.

    On CUDA it does so bit for bit in deterministic mode alone, see `training.repeatable`. Threads of
    one process take turns: they share PyTorch's random numbers. The record of a trial stays in the
    cache, and is returned from there, until `forget`.

    Args:
        spec: what to measure.
        device: "cpu", "cuda", "cuda:1"; by default CUDA where there is one.
        records: file of a `store.Store`; a record that another process put there while this one waited
            for it is returned as it is, and no dense network is pruned but the one that it knows.

    Raises:
        ValueError, data.DataError, store.StoreError: with the cause and the cure.
    """
    device = device or default_device()
    with _one_at_a_time, progress.errors_noted(run_folder(spec), device), repeatable():
        if isinstance(spec, Dense):
            return _recorded(spec, device, _run_dense)
        with progress.signed(run_folder(spec), device):  # no other writes the same checkpoints
            if (made := _made(spec, records)) is not None:
                return made
            carry_out = _run_trial if isinstance(spec, Trial) else _run_portrait
            record = _recorded(spec, device, partial(carry_out, records=records))
            store.write_json(run_folder(spec) / MADE, spec_key(spec), record.to_json())
            return record


_one_at_a_time = threading.Lock()


def _recorded(spec, device: str, carry_out: Callable) -> Record:
    started = time.perf_counter()
    result = carry_out(spec, datasets.load(_dense_of(spec).dataset, device))
    return Record(spec, result, provenance(device, time.perf_counter() - started))


def _made(spec: Trial | Portrait, records: Path | None) -> Record | None:
    """The record that another process made of `spec`: stored, or finished and not stored yet."""
    line = store.Store(records).load().get(spec_key(spec)) if records else None
    line = line or store.resume_json(run_folder(spec) / MADE, spec_key(spec))
    return Record.from_json(line) if line else None


def run_folder(spec: Dense | Trial | Portrait, cache: Path | None = None) -> Path:
    """Where a run keeps its checkpoints, in `cache` (by default `data.cache()`)."""
    cache = cache or datasets.cache()
    return cache / "runs" / f"{type(spec).__name__.lower()}-{spec_key(spec)}"


def reached(spec: Dense | Trial | Portrait, cache: Path | None = None) -> dict[str, int]:
    """How far a run came, as its folders show.

    Returns:
        dense: finished epochs of the dense network; layers: whose search has begun; generations: of
        all these, finished; selected: 1 once the filters are chosen; tuned: finished epochs of
        fine-tuning.
    """
    folder = run_folder(spec, cache)
    searches = list(folder.glob("search-*.json"))
    return {"dense": progress.epochs(run_folder(_dense_of(spec), cache) / DENSE),
            "layers": len(searches), "generations": sum(map(progress.generations, searches)),
            "selected": int((folder / SELECTION).exists()),
            "tuned": progress.epochs(folder / TUNED)}


def timeless(record: Record) -> dict:
    """Spec and result without what differs from run to run of one trial: times."""
    return {"spec": plain(record.spec), "result": _without(TIMES, record.result)}


def forget(spec: Dense | Trial | Portrait) -> None:
    """Delete what earlier sittings of `spec` left in the cache, as soon as no process is at it."""
    if run_folder(spec).exists():
        with store.locked(run_folder(spec)):
            shutil.rmtree(run_folder(spec), ignore_errors=True)


def provenance(device: str, seconds: float) -> dict:
    """Where and with what a result was made."""
    return {"seconds": round(seconds, 2), "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "device": _device_name(device), "commit": _commit(),
            "python": platform.python_version(), "versions": _versions()}


def _run_dense(dense: Dense, data: Data) -> dict:
    model, history = _trained(dense, data)
    return {"cost": _cost(model, data), "history": history,
            "validation": history[-1]["validation"], "test": history[-1]["test"]}


def _run_trial(trial: Trial, data: Data, records: Path | None) -> dict:
    dense, dense_history = _on_record(trial.dense, data, records)
    example = data.example()
    goal = dense_history[-1]["validation"] - WITHIN
    source = f"{spec_key(trial)} of network {store.digest(dense.state_dict())}"
    chosen = _select_once(trial, source, dense, example, data.train.labels[:len(example)])
    small = recalibrate(remove(dense, example, chosen["kept"]), data)
    damage = {"validation": accuracy(small, data, data.validation),
              "test": accuracy(small, data, data.test),
              "topological": topological_damage(dense, example, chosen["kept"]),
              "plain": plain_damage(dense, example, chosen["kept"]),
              "live": live_share(small, data)}
    epochs = train(small, data, trial.recovery, trial.seed,
                   run_folder(trial) / TUNED, f"{source} kept {store.key(chosen['kept'])}")
    history = [asdict(epoch) for epoch in epochs]
    return {"cost": _cost(small, data), "damage": damage, "history": history,
            "live": live_share(small, data), "recovery": recovery(history, damage, goal),
            **_by_column(chosen)}


def _run_portrait(portrait: Portrait, data: Data, records: Path | None) -> dict:
    """Diagrams of one layer and of what each method keeps of it, and the layer in the plane."""
    from sklearn.manifold import MDS

    from topoprune import topology

    model, example = _on_record(portrait.dense, data, records)[0], data.example()
    groups = [g for g in couplings(model, example) if portrait.layer in g.layers]
    if not groups:
        raise ValueError(f"unknown layer {portrait.layer!r}: the prunable layers are "
                         f"{', '.join(g.layers[0] for g in couplings(model, example))}")
    delta = topology.distance_matrix(points(model, example, groups)[0])
    plane = MDS(dissimilarity="precomputed", random_state=0, normalized_stress=False)
    kept, diagrams = {}, {"full": topology.diagrams(delta)}
    for method in portrait.methods:
        options = portrait.options if method == "topological" else {}
        kept[method] = selection(model, example, method, portrait.ratio, portrait.dense.seed,
                                 layers=(portrait.layer,), **options).kept[portrait.layer]
        diagrams[method] = topology.diagrams(delta[kept[method]][:, kept[method]])
    return {"plane": plane.fit_transform(delta.astype("float64")).round(4).tolist(), "kept": kept,
            "diagrams": {name: {str(d): pairs.round(6).tolist() for d, pairs in made.items()}
                         for name, made in diagrams.items()}}


def topological_damage(dense: nn.Module, example: torch.Tensor, kept: Kept) -> dict:
    """Layer -> {dimension: distance between the layer's diagrams and those of its kept filters}.

    The distance is the topological fitness in one dimension (euclidean, weights, not pointed),
    whatever the method, so that methods are judged by one measure.
    """
    from topoprune import topology

    groups = couplings(dense, example)
    distances = {}
    for group, cloud in zip(groups, points(dense, example, groups), strict=True):
        chosen = torch.tensor(kept[group.layers[0]])
        chosen = chosen[chosen < group.choices].numpy()[None]
        apart = topology.Fitness(topology.distance_matrix(cloud)).by_dimension(chosen)
        distances[group.layers[0]] = {str(d): float(value[0]) for d, value in apart.items()}
    return distances


def plain_damage(dense: nn.Module, example: torch.Tensor, kept: Kept) -> dict:
    """Layer -> what simpler measures than topology say of a removal, each a share in [0, 1].

    Returns:
        norm: share of the layer's summed squared weights that is removed.
        rank: share of the effective rank that is lost, the exponential of the entropy of the
            normalised singular values (Roy & Vetterli, EUSIPCO 2007).
    """
    groups = couplings(dense, example)
    lost = {}
    for group, cloud in zip(groups, points(dense, example, groups), strict=True):
        rows = torch.from_numpy(cloud)
        few = rows[[i for i in kept[group.layers[0]] if i < group.choices]]
        lost[group.layers[0]] = {
            "norm": 1 - (few.square().sum() / rows.square().sum()).item(),
            "rank": 1 - _effective_rank(few) / _effective_rank(rows)}
    return lost


def _effective_rank(rows: torch.Tensor) -> float:
    values = torch.linalg.svdvals(rows.double())
    return torch.special.entr(values / values.sum()).sum().exp().item()


def live_share(model: nn.Module, data: Data, images: int = 1000) -> list[float]:
    """For each ReLU, the share of its channels whose output varies over test images.

    0 is a collapsed layer: its output is the same for every image.
    """
    shares = []

    def hook(module, inputs, output):
        spread = output.float().flatten(2).std(dim=0).amax(dim=-1)
        shares.append((spread > 0).float().mean().item())

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.ReLU)]
    try:
        model.eval()
        with torch.inference_mode():
            model(data.normalized(data.test.images[:images]))
    finally:
        for handle in handles:
            handle.remove()
    return shares


def recovery(history: list[dict], damage: dict, goal: float) -> dict:
    """Epochs and seconds of fine-tuning until validation accuracy reaches `goal`.

    Returns:
        epochs, seconds: of training until the goal, or of all training where it is never reached.
        reached: False for a censored run.
        area: mean over the epochs, damage included, of the validation accuracy (trapezoids).
    """
    curve = [damage["validation"], *(epoch["validation"] for epoch in history)]
    epochs = next((i for i, value in enumerate(curve) if value >= goal), None)
    spent = len(history) if epochs is None else epochs
    steps = [(a + b) / 2 for a, b in itertools.pairwise(curve)]
    return {"goal": goal, "reached": epochs is not None, "epochs": spent,
            "seconds": sum(epoch["seconds"] for epoch in history[:spent]),
            "area": sum(steps) / len(steps) if steps else curve[0]}


def _on_record(dense: Dense, data: Data, records: Path | None) -> tuple[nn.Module, list[dict]]:
    """The dense network, refused if `records` know another: what prunes it would compare with nothing."""
    model, history = _trained(dense, data)
    line = store.Store(records).load().get(spec_key(dense)) if records else None
    if line and abs(line["result"]["validation"] - history[-1]["validation"]) > 1e-9:
        made = Record.from_json(line).provenance
        raise store.StoreError(
            f"the dense network of seed {dense.seed} in {run_folder(dense)} is not the one on record "
            f"(validation accuracy {history[-1]['validation']:.4f}, not {line['result']['validation']:.4f}; "
            f"that one was made on {made['device']}): the cache lost it, and other threads or another device "
            "train another. Train it there, or run it and all its trials again with force")
    return model, history


def _trained(dense: Dense, data: Data) -> tuple[nn.Module, list[dict]]:
    """The dense network, trained now or continued or read from the cache, and its epochs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(dense.seed)
        model = build(dense.architecture, data.classes, dense.width)
    device = data.train.labels.device
    model.to(device)
    source = {"architecture": dense.architecture, "classes": data.classes, "width": dense.width}
    checkpoint = run_folder(dense) / DENSE
    with progress.signed(checkpoint.parent, str(device)):  # of several that need it, one trains
        history = train(model, data, dense.recipe, dense.seed, checkpoint, spec_key(dense), source)
    return model, [asdict(epoch) for epoch in history]


def _select_once(trial: Trial, source: str, dense: nn.Module, example: torch.Tensor,
                 labels: torch.Tensor) -> dict:
    """The selection of `trial`, kept in the cache so that an interrupted trial does not repeat it.

    `source` names the trial and the network's weights: no selection of another is taken for it.
    """
    path = run_folder(trial) / SELECTION
    if (found := store.resume_json(path, source)) is not None:
        return found
    extra = {"topological": {"checkpoints": path.parent}, "taylor": {"labels": labels}}
    made = selection(dense, example, trial.method, trial.ratio, trial.seed, **trial.options,
                     **extra.get(trial.method, {}))
    result = {"kept": made.kept, "selection_seconds": made.seconds, "searches": made.searches}
    store.write_json(path, source, result)
    return result


def _by_column(result: dict) -> dict:
    """The result with each search as {column: values of its generations}: those that the book reads.

    All that a search knows of a generation, one dict each, as schema 1 stored it, takes five times the room.
    """
    searches = result.get("searches", {})
    columns = {layer: {name: [_short(step[name], digits) for step in steps]
                       for name, digits in SEARCHED.items()}
               for layer, steps in searches.items() if isinstance(steps, list) and steps}
    return {**result, "searches": {**searches, **columns}} if columns else result


def _short(value: int | float, digits: int) -> int | float:
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def _without(names: set[str], value):
    """JSON `value` without the fields of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(names, x) for key, x in value.items() if key not in names}
    return [_without(names, x) for x in value] if isinstance(value, list) else value


def _cost(model: nn.Module, data: Data) -> dict:
    return asdict(cost(model, data.example()))


def _dense_of(spec: Dense | Trial | Portrait) -> Dense:
    return spec if isinstance(spec, Dense) else spec.dense


def _read_dense(spec: dict) -> Dense:
    return Dense(**{**spec, "recipe": Recipe(**spec["recipe"])})


def _read_trial(spec: dict) -> Trial:
    return Trial(**{**spec, "dense": _read_dense(spec["dense"]),
                    "recovery": Recipe(**spec["recovery"])})


def _read_portrait(spec: dict) -> Portrait:
    return Portrait(**{**spec, "dense": _read_dense(spec["dense"]),
                       "methods": tuple(spec["methods"])})


_KINDS: dict[str, Callable] = {"Dense": _read_dense, "Trial": _read_trial,
                               "Portrait": _read_portrait}


@cache
def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not a git checkout"


@cache
def _versions() -> dict:
    names = ("topoprune", "torch", "torchvision", "giotto-tda", "giotto-ph", "deap", "nni",
             "torch-pruning", "numpy", "scikit-learn")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _device_name(device: str) -> str:
    computed = str(precision(device.split(":")[0])).removeprefix("torch.")
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {computed}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, {computed}"
