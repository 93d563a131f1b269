"""The grid of trials of each profile: what the store has is loaded, what it lacks is run."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, as_completed
from pathlib import Path

from tqdm import tqdm

from topoprune.files import FileError
from topoprune.study.execution import forget, run, run_folder
from topoprune.study.profiles import dense_specs, describe, profile, specs, trial_specs
from topoprune.study.store import Store, is_locked
from topoprune.study.trial import Dense, Portrait, Record, Trial, spec_key


def records(
    name: str,
    wanted: Iterable[Dense | Trial | Portrait] | None = None,
    device: str | None = None,
    force: bool = False,
    executor: Executor | None = None,
) -> list[Record]:
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
        FileError: the records file is damaged, or has none of `wanted` and must not run them.
        ValueError, data.DataError: as `trial.run`.
        RunError: runs on the executor failed; the records of all others are stored.
    """
    wanted = list(specs(name) if wanted is None else wanted)
    store = records_store(name)
    if force:
        if busy := [spec for spec in wanted if is_locked(run_folder(spec))]:
            raise FileError(
                f"{describe(busy[0])} is running in another process: wait for it, or stop it, before it is forced"
            )
        store.drop({spec_key(spec) for spec in wanted})
        for spec in wanted:
            forget(spec)
    found = store.load()
    missing = [spec for spec in wanted if spec_key(spec) not in found]
    if missing and os.environ.get("TOPOPRUNE_NO_RUN"):
        if len(missing) == len(wanted):
            raise FileError(
                f"{store.path} has none of {len(wanted)} records (first: "
                f"{describe(missing[0])}): run `python -m topoprune run --profile "
                f"{name}`, or unset TOPOPRUNE_NO_RUN"
            )
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


def companion_records(
    name: str, which: str, seeds: Iterable[int] | None = None, device: str | None = None, force: bool = False
) -> list[Record]:
    """The records of a profile that a book shows beside its own; none where it has no such profile.

    Args:
        which: "ablation", "contrast", "longer", "whole" or "cutout", as of `Profile`.
    """
    if not (other := getattr(profile(name), which)):
        return []
    return records(other, [*dense_specs(other, seeds), *trial_specs(other, seeds)], device, force)


class RunError(RuntimeError):
    """Some runs failed; the message names the first and its cause."""


def _carried_out(todo: list, device: str | None, path: Path, executor: Executor | None) -> Iterator[Record]:
    """The record of each spec, as it is finished."""
    if executor is None:
        yield from (run(spec, device, path) for spec in todo)
        return
    # What is pruned is trained first: the trials share it.
    for dense in (True, False):
        yield from _side_by_side([spec for spec in todo if isinstance(spec, Dense) is dense], device, path, executor)


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
        raise RunError(
            f"{len(failed)} of {len(todo)} runs failed, the first: {describe(spec)}: "
            f"{error!r}; the others are stored, the same command runs these again"
        ) from error


def records_store(name: str) -> Store:
    """The store of a profile: `TOPOPRUNE_RESULTS`, or the published records of this checkout."""
    return Store(results_folder() / f"{name}.jsonl")


def results_folder() -> Path:
    """`TOPOPRUNE_RESULTS`, else `book/results` of the checkout, else `results` here."""
    if given := os.environ.get("TOPOPRUNE_RESULTS"):
        return Path(given)
    published = Path(__file__).resolve().parents[2] / "book" / "results"
    return published if published.parent.is_dir() else Path("results")
