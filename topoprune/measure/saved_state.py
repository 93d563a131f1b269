"""What is on disk of a study: how far it is, which files are damaged, and how two sets of records differ."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from topoprune import files
from topoprune.files import FileError, FileWarning
from topoprune.study import Record, Store
from topoprune.study.execution import without_times
from topoprune.study.locks import leftovers
from topoprune.study.run_folder import finished_steps, run_folder
from topoprune.study.trial import Dense, Trial, spec_key


class Progress(NamedTuple):
    """How far a trial and its dense network are. It never falls, whatever happens to the process.

    Attributes:
        records: stored records, at most two.
        dense_epochs: finished epochs of the dense network.
        selected: 1 once the filters are chosen.
        generations: finished generations of the searches.
        tuning_epochs: finished epochs of fine-tuning.
    """

    records: int
    dense_epochs: int
    selected: int
    generations: int
    tuning_epochs: int


def progress(folder: Path, trial: Trial) -> Progress:
    """Read how far a trial is. A stored trial counts as whole: its checkpoints are deleted."""
    stored = load_records(folder)
    if spec_key(trial) in stored:
        return Progress(len(stored), trial.dense.recipe.epochs, 1, 0, trial.recovery.epochs)
    steps = finished_steps(trial, folder / "cache")
    return Progress(len(stored), steps["dense"], steps["selected"], steps["generations"], steps["tuned"])


def load_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> stored record, of all records files in `folder/results`.

    Raises:
        FileError, FileWarning: a file is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", FileWarning)
        stores = [Store(path) for path in sorted((folder / "results").glob("*.jsonl"))]
        return {key: record for store in stores for key, record in store.load().items()}


def comparable_records(folder: Path) -> dict[str, Any]:
    """Key -> record, without times and provenance, which differ between two runs of one trial."""
    return {key: without_times(Record.from_json(record)) for key, record in load_records(folder).items()}


def damaged_files(folder: Path) -> list[str]:
    """Names of files that cannot be read back whole, or that were set aside as such."""
    damaged = [path.name for path in folder.rglob("*.refused")]
    for path in (folder / "cache" / "runs").glob("*/[!.]*"):
        try:
            if path.suffix == ".safetensors":
                files.read_tensors(path)
            elif path.suffix == ".json":
                files.read_json(path)
        except FileError:
            damaged.append(path.name)
    for path in (folder / "results").glob("*.jsonl"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FileWarning)
                Store(path).load()
        except (FileError, FileWarning):
            damaged.append(path.name)
    return damaged


def temporary_files(folder: Path, specs: list[Dense | Trial], records_file: str) -> set[Path]:
    """Files under a temporary name: they are being written, or their process was killed while it wrote them."""
    targets = [*(run_folder(spec, folder / "cache") for spec in specs), folder / "results" / records_file]
    return {path for target in targets for path in leftovers(target)}


def first_difference(expected: Any, actual: Any, name: str = "") -> list[str]:
    """Compare two JSON values; floats are equal if they are so bit for bit.

    Returns:
        One line "field: actual, not expected" of the first field that differs; none if all are equal.

    >>> first_difference({"a": [1, 2]}, {"a": [1, 3]})
    ['a[1]: 3, not 2']
    """
    if isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        pairs = [(f"{name}.{key}".lstrip("."), expected[key], actual[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(expected, actual, strict=True))]
    elif files.canonical(expected) == files.canonical(actual):
        return []
    else:
        return [f"{name}: {_shortened(actual)}, not {_shortened(expected)}"]
    return next((lines for field, a, b in pairs if (lines := first_difference(a, b, field))), [])


def _shortened(value: Any) -> str:
    text = files.canonical(value)
    return text if len(text) < 60 else f"{text[:60]}..."
