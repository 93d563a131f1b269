"""Specs (a dense network, a trial, a removal, a portrait) and the record of what a spec gave."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Generic, TypeVar

from topoprune import files
from topoprune.compensation import MODES
from topoprune.selection import METHODS
from topoprune.training import Recipe


@dataclass(frozen=True)
class Dense:
    """A network trained from scratch; all trials that prune it share it.

    Attributes:
        dataset, architecture: names, see `datasets.load` and `models.build`.
        width: multiplier of every layer's number of filters.
        seed: of the initial weights and of the order of the images.
        recipe: how it is trained.

    Raises:
        ValueError: a recipe of 0 epochs.
    """

    dataset: str
    architecture: str
    width: float
    seed: int
    recipe: Recipe

    def __post_init__(self):
        if self.recipe.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.recipe.epochs}: a dense network is trained")


@dataclass(frozen=True)
class Trial:
    """One pruning run; its canonical JSON is its identity.

    Attributes:
        dense: the network that is pruned.
        method: see `selection.select`.
        ratio: share of the filters to remove from every layer, in [0, 1).
        seed: of the selection, and of the order of the images in fine-tuning.
        recovery: how the pruned network is fine-tuned.
        options: of the method (JSON values), see `topological.topological`.
        compensation: how the next layers are refitted before fine-tuning, see `network.remove`; "" for not at all.

    Raises:
        ValueError: unknown method or compensation, or a ratio outside [0, 1).

    Example:
        >>> dense = Dense("digits", "vgg16", 0.125, seed=0, recipe=Recipe(epochs=10))
        >>> trial = Trial(dense, "l1", ratio=0.5, seed=0, recovery=Recipe(epochs=3))
        >>> spec_key(trial)
        'c851659fdf12cd05'
    """

    dense: Dense
    method: str
    ratio: float
    seed: int
    recovery: Recipe
    options: dict = field(default_factory=dict)
    compensation: str = ""

    def __post_init__(self):
        _check_choice(self.method, self.ratio)
        if self.compensation not in ("", *MODES):
            raise ValueError(f"unknown compensation {self.compensation!r}: choose from {', '.join(MODES)}, or none")


@dataclass(frozen=True)
class Removal:
    """A choice of filters, removed and refitted in each way, without fine-tuning: forward passes alone.

    Attributes:
        dense: the network that is pruned.
        method: see `selection.select`.
        ratio: share of the filters to remove from every layer, in [0, 1).
        seed: of the selection; that of the dense network, as in a trial, or of another draw of a random method.
        options: of the method (JSON values).

    Raises:
        ValueError: unknown method, or a ratio outside [0, 1).
    """

    dense: Dense
    method: str
    ratio: float
    seed: int
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        _check_choice(self.method, self.ratio)


@dataclass(frozen=True)
class Clouds:
    """The layers of a dense network as clouds of points, in weight space and in the functional space.

    Attributes:
        dense: the network.
        layer: the convolution whose barcodes are kept.
        ratio: share of the filters that a cover removes, for its covering radius.
    """

    dense: Dense
    layer: str
    ratio: float


def _check_choice(method: str, ratio: float) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio}: every layer keeps at least one filter")


@dataclass(frozen=True)
class Portrait:
    """One layer of a dense network, and the filters of it that each method keeps, for the pictures.

    Attributes:
        dense: the network.
        layer: name of the convolution.
        ratio: share of its filters to remove.
        methods: names of `VARIANTS`.
        options: of the topological method.
    """

    dense: Dense
    layer: str
    ratio: float
    methods: tuple[str, ...]
    options: dict = field(default_factory=dict)


Spec = Dense | Trial | Removal | Clouds | Portrait
AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True)
class Record(Generic[AnySpec]):
    """The result of a spec.

    Attributes:
        spec: what was run.
        result: what was measured (JSON values), see `execution`.
        provenance: commit, versions, device, date and seconds, see `provenance.provenance`.
    """

    spec: AnySpec
    result: dict
    provenance: dict

    @property
    def key(self) -> str:
        return spec_key(self.spec)

    def to_json(self) -> dict:
        """The record as JSON values, see `from_json`."""
        return {
            "key": self.key,
            "kind": type(self.spec).__name__,
            "spec": spec_fields(self.spec),
            "result": self.result,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, line: dict) -> "Record":
        """Read what `to_json` wrote.

        Raises:
            files.FileError: fields that this version does not know, or a key that does not belong to the record.
        """
        try:
            record = cls(_READERS[line["kind"]](line["spec"]), searches_by_column(line["result"]), line["provenance"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise files.FileError(
                f"record {line.get('key')!r} was written by another version of topoprune ({error!r}): "
                "use that version, or delete its line and run again"
            ) from error
        if record.key != line["key"]:
            raise files.FileError(
                f"record {line['key']!r} was altered (its content has the key {record.key!r}): "
                "restore the file, or delete its line and run again"
            )
        return record


def spec_key(spec: Spec) -> str:
    """Short identity of a spec: 16 hexadecimal digits."""
    return files.key({type(spec).__name__: spec_fields(spec)})


ALWAYS_WRITTEN = {"batch", "peak_rate", "warmup", "momentum", "weight_decay", "label_smoothing", "shift", "options"}
"""Fields with a default that the first records name. A field that was added later is named only if it differs from
its default, so that the keys of older records stay."""


def spec_fields(spec: Spec) -> dict:
    """The fields of a spec as JSON values, see `ALWAYS_WRITTEN`."""
    written = {
        f.name: getattr(spec, f.name)
        for f in fields(spec)
        if f.name in ALWAYS_WRITTEN or getattr(spec, f.name) != f.default
    }
    return {name: _json_value(value) for name, value in written.items()}


def _json_value(value):
    if isinstance(value, Recipe):
        return value.settings(ALWAYS_WRITTEN)
    if isinstance(value, Dense):
        return spec_fields(value)
    return value if isinstance(value, str | int | float) else json.loads(json.dumps(value))


SEARCH_COLUMNS = {"generation": 6, "best": 6, "evaluations": 6, "seconds": 3}
"""What a record keeps of each generation of a search, and to how many digits (whole numbers keep all)."""


def searches_by_column(result: dict) -> dict:
    """The result with each search as {column: one value a generation}, a fifth of the size of one dict a generation.

    Example:
        >>> steps = [{"generation": 0, "best": 0.5, "evaluations": 8, "seconds": 0.123456, "worst": 0.9}]
        >>> searches_by_column({"searches": {"features.0": steps}})["searches"]["features.0"]
        {'generation': [0], 'best': [0.5], 'evaluations': [8], 'seconds': [0.123]}
    """
    searches = result.get("searches", {})
    columns = {
        layer: {name: [_rounded(step[name], digits) for step in steps] for name, digits in SEARCH_COLUMNS.items()}
        for layer, steps in searches.items()
        if isinstance(steps, list) and steps
    }
    return {**result, "searches": {**searches, **columns}} if columns else result


def _rounded(value: int | float, digits: int) -> int | float:
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def _read_dense(spec: dict) -> Dense:
    return Dense(**{**spec, "recipe": Recipe(**spec["recipe"])})


def _read_trial(spec: dict) -> Trial:
    return Trial(**{**spec, "dense": _read_dense(spec["dense"]), "recovery": Recipe(**spec["recovery"])})


def _read_removal(spec: dict) -> Removal:
    return Removal(**{**spec, "dense": _read_dense(spec["dense"])})


def _read_clouds(spec: dict) -> Clouds:
    return Clouds(**{**spec, "dense": _read_dense(spec["dense"])})


def _read_portrait(spec: dict) -> Portrait:
    return Portrait(**{**spec, "dense": _read_dense(spec["dense"]), "methods": tuple(spec["methods"])})


_READERS: dict[str, Callable] = {
    "Dense": _read_dense,
    "Trial": _read_trial,
    "Removal": _read_removal,
    "Clouds": _read_clouds,
    "Portrait": _read_portrait,
}
