"""What can be asked for: a dense network, a trial, a portrait; and the record of what came of it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from topoprune import files
from topoprune.selection import METHODS
from topoprune.training import Recipe


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
        method: see `selection.select`.
        ratio: share of filters removed from every layer, in [0, 1).
        seed: of the selection and of the fine-tuning's data order.
        recovery: how the pruned network is fine-tuned.
        options: of the method (JSON values), see `topological.topological`.
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
            raise ValueError(f"ratio must lie in [0, 1), got {self.ratio}: every layer keeps at least one filter")


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
        return {
            "key": self.key,
            "kind": type(self.spec).__name__,
            "spec": plain(self.spec),
            "result": self.result,
            "provenance": self.provenance,
        }

    @classmethod
    def from_json(cls, record: dict) -> "Record":
        """The record that `to_json` gave.

        Raises:
            files.FileError: fields that this version does not know, or a key that does not belong
                to the record.
        """
        try:
            made = cls(
                _KINDS[record["kind"]](record["spec"]), searches_by_column(record["result"]), record["provenance"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise files.FileError(
                f"record {record.get('key')!r} was written by another version "
                f"of topoprune ({error!r}): use that version, or delete its line "
                "and run again"
            ) from error
        if made.key != record["key"]:
            raise files.FileError(
                f"record {record['key']!r} was altered: its content has the key "
                f"{made.key!r}; restore the file or delete that line"
            )
        return made


_YOUNGER = {"muon_rate": 0.0, "muon_decay": 0.05, "cutout": 0}
"""Settings that the first records did not know, with the values that leave those as they were."""


def plain(spec: Dense | Trial | Portrait) -> dict:
    """The spec as JSON values; younger settings only where they differ from `_YOUNGER`, so that
    records from before them keep their keys."""
    return json.loads(
        json.dumps(asdict(spec)),
        object_hook=lambda fields: {name: value for name, value in fields.items() if _YOUNGER.get(name) != value},
    )


def spec_key(spec: Dense | Trial | Portrait) -> str:
    """Short identity of a spec."""
    return files.key({type(spec).__name__: plain(spec)})


SEARCHED = {"generation": 6, "best": 6, "evaluations": 6, "seconds": 3}
"""What a record keeps of each generation of a search, and the digits of what is no whole number."""


def searches_by_column(result: dict) -> dict:
    """The result with each search as {column: values of its generations}: those that the book reads.

    All that a search knows of a generation, one dict each, as schema 1 stored it, takes five times the room.
    """
    searches = result.get("searches", {})
    columns = {
        layer: {name: [_short(step[name], digits) for step in steps] for name, digits in SEARCHED.items()}
        for layer, steps in searches.items()
        if isinstance(steps, list) and steps
    }
    return {**result, "searches": {**searches, **columns}} if columns else result


def _short(value: int | float, digits: int) -> int | float:
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")


def _read_dense(spec: dict) -> Dense:
    return Dense(**{**spec, "recipe": Recipe(**spec["recipe"])})


def _read_trial(spec: dict) -> Trial:
    return Trial(**{**spec, "dense": _read_dense(spec["dense"]), "recovery": Recipe(**spec["recovery"])})


def _read_portrait(spec: dict) -> Portrait:
    return Portrait(**{**spec, "dense": _read_dense(spec["dense"]), "methods": tuple(spec["methods"])})


_KINDS: dict[str, Callable] = {"Dense": _read_dense, "Trial": _read_trial, "Portrait": _read_portrait}
