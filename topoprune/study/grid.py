"""Load the records of a profile, and run what is missing."""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path

import torch
from tqdm import tqdm

from topoprune import files
from topoprune.files import FileError
from topoprune.study.datasets import DataError
from topoprune.study.execution import run
from topoprune.study.locks import is_locked
from topoprune.study.plans import companion_specs, describe, specs
from topoprune.study.profiles import PROFILES
from topoprune.study.provenance import PUBLISHED, commit, may_be_stored, require_clean
from topoprune.study.run_folder import discard_run, run_folder
from topoprune.study.store import Store
from topoprune.study.trial import Dense, Portrait, Record, Removal, Spec, Trial, spec_key

AT_ONCE = 256
"""Runs that an executor of unknown size holds at one time."""


class RunError(RuntimeError):
    """Some runs failed; the message names the first and its cause. The records of all others are stored."""


def records(
    name: str,
    wanted: Iterable[Spec] | None = None,
    device: str | None = None,
    force: bool = False,
    executor: Executor | None = None,
) -> list[Record]:
    """Load the records of a profile, and run those that its store lacks.

    A record that another profile has in the same folder is copied. A new one is stored as soon as it is finished, so an
    interrupted call loses one epoch at most. A run that fails does not stop the others. With the environment variable
    TOPOPRUNE_NO_RUN nothing is run, and the records that exist are returned.

    Args:
        name: of the profile.
        wanted: specs of the profile; by default all of them.
        device: see `run`.
        force: discard what the store and the cache hold of `wanted`, and run it again. The old records file stays
            beside the new one as .bak. A dense network stays, too, if other records of the profile rest on it. To
            continue after an interruption, leave it out.
        executor: runs them side by side: any `concurrent.futures.Executor` whose workers share the cache folder.

    Raises:
        files.FileError: the records file is damaged, holds records of several dense networks of one seed, has none of
            `wanted` and nothing may be run, or is published while the code has changes that are not committed (see
            `provenance.require_clean`).
        datasets.DataError: images are missing or damaged.
        RunError: some runs failed.
        ValueError: an unknown device, or one that this machine lacks.
    """
    return records_of_profiles({name: wanted}, device, force, executor)[name]


def records_of_profiles(
    wanted: Mapping[str, Iterable[Spec] | None],
    device: str | None = None,
    force: bool = False,
    executor: Executor | None = None,
    at_once: int = AT_ONCE,
) -> dict[str, list[Record]]:
    """As `records`, for several profiles; a spec that they share is run once.

    Args:
        wanted: profile -> its specs, or None for all of them; see `plans.with_companions`.
        at_once: runs that the executor holds at one time, twice as many as it has workers. The others wait, and follow
            in the order of their specs as soon as their dense networks are trained.

    Returns:
        profile -> its records
    """
    chosen = {name: list(specs(name) if some is None else some) for name, some in wanted.items()}
    may_run = not os.environ.get("TOPOPRUNE_NO_RUN")
    if force and not may_run:
        raise FileError("force would discard records that TOPOPRUNE_NO_RUN forbids to run again: leave out one")
    if may_run and not force:
        _copy_shared(chosen)
    find = _without_shared_networks if force else _missing
    missing = {name: find(name, some) for name, some in chosen.items()}
    if not may_run:
        _require_some(chosen, missing)
    elif any(missing.values()):
        _require_ready(missing, device, executor)
        if force:
            _discard(missing)
        _run_and_store(missing, device, executor, at_once)
        _forget_forced(chosen)
    return {name: _load(name, some) for name, some in chosen.items()}


def companion_records(
    name: str, which: str, seeds: Iterable[int] | None = None, device: str | None = None, force: bool = False
) -> list[Record]:
    """Records of a companion profile, such as its ablations; empty if there is none.

    Args:
        name: of the profile.
        which: one of `profiles.COMPANIONS`.
        seeds: by default those of the companion.
        device, force: see `records`.
    """
    companion, wanted = companion_specs(name, which, seeds)
    return records(companion, wanted, device, force) if companion else []


def published_records(name: str) -> list[Record]:
    """The committed records of a profile, whatever folder TOPOPRUNE_RESULTS names; portraits are left out.

    Raises:
        files.FileError: there are none, as in a package that was installed without its book.
    """
    stored = Store(PUBLISHED / f"{name}.jsonl").load()
    keys = [spec_key(spec) for spec in specs(name) if not isinstance(spec, Portrait)]
    found = [Record.from_json(stored[key]) for key in keys if key in stored]
    if not found:
        raise FileError(f"{PUBLISHED} has no records of the profile {name}: run this in a checkout of the project")
    return found


def records_store(name: str) -> Store:
    """The store of a profile, in `results_folder`."""
    return Store(results_folder() / f"{name}.jsonl")


def results_folder() -> Path:
    """TOPOPRUNE_RESULTS, or the published `book/results` of this checkout, or `results` in the working folder."""
    if given := os.environ.get("TOPOPRUNE_RESULTS"):
        return Path(given)
    return PUBLISHED if PUBLISHED.parent.is_dir() else Path("results")


def _discard(chosen: dict[str, list[Spec]]) -> None:
    """Forget records and checkpoints, unless another process works on one of them."""
    for spec in (spec for some in chosen.values() for spec in some):
        if is_locked(run_folder(spec)):
            raise FileError(f"{describe(spec)} runs in another process: wait for it, or stop it, and force it then")
    for name, some in chosen.items():
        keys = {spec_key(spec) for spec in some}
        files.write_json(_forced_file(name), name, sorted(keys | _forced(name)))
        records_store(name).drop(keys)
        for spec in some:
            discard_run(spec)


def _forced_file(name: str) -> Path:
    """Where the keys stand that were discarded to be run again: until they are, no other profile's record will do."""
    path = records_store(name).path
    return path.with_name(f"{path.name}.forced")


def _forced(name: str) -> set[str]:
    return set(files.resume(files.read_json, _forced_file(name), name) or ())


def _forget_forced(chosen: dict[str, list[Spec]]) -> None:
    for name in chosen:
        if _forced(name) <= records_store(name).load().keys():
            _forced_file(name).unlink(missing_ok=True)


def _without_shared_networks(name: str, some: list[Spec]) -> list[Spec]:
    """The specs without the dense networks on which other records of the profile rest."""
    chosen, stored = {spec_key(spec) for spec in some}, records_store(name).load()
    others = (spec for spec in specs(name) if isinstance(spec, Trial | Removal))
    needed = {spec.dense for spec in others if spec_key(spec) in stored and spec_key(spec) not in chosen}
    return [spec for spec in some if not (isinstance(spec, Dense) and spec in needed)]


def _missing(name: str, some: list[Spec]) -> list[Spec]:
    """The specs whose records the store of a profile lacks."""
    stored = records_store(name).load()
    return [spec for spec in some if spec_key(spec) not in stored]


def _copy_shared(chosen: dict[str, list[Spec]]) -> None:
    """Store for each of these profiles what the folder holds for any profile already."""
    missing = {name: lacking for name, some in chosen.items() if (lacking := _missing(name, some))}
    if not missing:
        return
    held = {key: line for name in PROFILES for key, line in records_store(name).load().items()}
    for name, lacking in missing.items():
        store, forced = records_store(name), _forced(name)
        for line in (held[key] for key in map(spec_key, lacking) if key in held and key not in forced):
            if may_be_stored(store.path, line["provenance"].get("commit", "")):
                store.append(line)


def _require_ready(missing: dict[str, list[Spec]], device: str | None, executor: Executor | None) -> None:
    """Refuse what every run would fail by, before the first."""
    _require_device(device, here=executor is None or isinstance(executor, ProcessPoolExecutor))
    for store in (records_store(name) for name, some in missing.items() if some):
        require_clean(store.path, commit())
        store.require_writable()


def _require_device(device: str | None, here: bool) -> None:
    """Refuse an unknown device; one that this machine lacks, too, if the runs are to be `here`."""
    given = device or "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {given!r}")
    if given == "cpu" or not here:
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(given.partition(":")[2] or 0) >= found:
        raise ValueError(
            f"there is no device {given!r}, PyTorch finds {found} CUDA devices here: "
            "name another, as cpu, or install a driver and a PyTorch for CUDA"
        )


def _require_some(chosen: dict[str, list[Spec]], missing: dict[str, list[Spec]]) -> None:
    """Refuse a profile of which no record is stored, where none may be run."""
    for name, some in missing.items():
        if some and len(some) == len(chosen[name]):
            raise FileError(
                f"{records_store(name).path} has none of {len(some)} records (first: {describe(some[0])}): "
                f"run `python -m topoprune run --profile {name}`, or unset TOPOPRUNE_NO_RUN"
            )


def _load(name: str, some: list[Spec]) -> list[Record]:
    store = records_store(name)
    stored = store.load()
    found = [Record.from_json(stored[spec_key(spec)]) for spec in some if spec_key(spec) in stored]
    _require_one_network(name, found)
    return found


def _require_one_network(name: str, found: list[Record]) -> None:
    """Refuse records that were run on another dense network than the one on record: they are no pairs."""
    networks = {record.spec: record.result.get("network") for record in found if isinstance(record.spec, Dense)}
    for record in found:
        if isinstance(record.spec, Dense):
            continue
        own, known = record.result.get("network"), networks.get(record.spec.dense)
        if own and known and own != known:  # older records do not say
            raise FileError(
                f"{records_store(name).path}: {describe(record.spec)} was run on another dense network than the one on "
                "record: restore the file, or run the seed anew with "
                f"`python -m topoprune run --profile {name} --seeds {record.spec.dense.seed} --force`"
            )


def _run_and_store(missing: dict[str, list[Spec]], device: str | None, executor: Executor | None, at_once: int) -> None:
    """Run each missing spec once, and store its record for every profile that lacks it."""
    todo: dict[str, Spec] = {}
    stores: dict[str, list[Store]] = defaultdict(list)
    for name, some in missing.items():
        store = records_store(name)
        for spec in some:
            todo[spec_key(spec)] = spec
            stores[spec_key(spec)].append(store)
    held = {store.path: store.load().keys() for store in map(records_store, missing)}
    calls = [(spec, device, *(path for path in held if key not in held[path])) for key, spec in todo.items()]
    names = ", ".join(name for name, some in missing.items() if some)
    with tqdm(total=len(todo), desc=names, unit="run", disable=None) as bar:
        for record in _finished(calls, executor, at_once):
            for store in stores[record.key]:
                require_clean(store.path, record.provenance["commit"])  # of the process that ran it
                store.append(record.to_json())
            if not isinstance(record.spec, Dense):  # a dense network is needed again
                discard_run(record.spec)
            bar.update()


def _finished(calls: list[tuple], executor: Executor | None, at_once: int) -> Iterator[Record]:
    """The record of each call of `run` that succeeds, as it is finished; at the end an error that names the others."""
    outcomes = _one_by_one(calls) if executor is None else _side_by_side(calls, executor, at_once)
    failed = []
    with contextlib.closing(outcomes):
        for spec, outcome in outcomes:
            if isinstance(outcome, DataError):  # every run would fail
                raise outcome
            if isinstance(outcome, BaseException):
                failed.append((spec, outcome))
            else:
                yield outcome
    if failed:
        deaths = [failure for failure in failed if isinstance(failure[1], BrokenExecutor)]  # new processes may help
        spec, error = (deaths or failed)[0]
        raise RunError(
            f"{len(failed)} of {len(calls)} runs failed, the first: {describe(spec)}: {error!r}; "
            f"{'the others are stored; ' if len(failed) < len(calls) else ''}the same command runs these again"
        ) from error


def _one_by_one(calls: list[tuple]) -> Generator[tuple[Spec, Record | BaseException], None, None]:
    for call in calls:
        outcome: Record | Exception
        try:
            outcome = run(*call)
        except Exception as error:
            outcome = error
        yield call[0], outcome


def _side_by_side(
    calls: list[tuple], executor: Executor, at_once: int
) -> Generator[tuple[Spec, Record | BaseException], None, None]:
    """Submit dense networks first, then the others in their order, each when its dense network is finished."""
    training = {call[0] for call in calls if isinstance(call[0], Dense)}
    waiting = sorted(calls, key=lambda call: not isinstance(call[0], Dense))
    running: dict[Future, Spec] = {}
    try:
        while waiting or running:
            ready = [call for call in waiting if isinstance(call[0], Dense) or call[0].dense not in training]
            for call in ready[: at_once - len(running)]:
                waiting.remove(call)
                running[_submit(executor, call)] = call[0]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                spec = running.pop(future)
                if isinstance(spec, Dense):
                    training.discard(spec)
                yield spec, future.exception() or future.result()
    finally:
        for future in running:
            future.cancel()


def _submit(executor: Executor, call: tuple) -> Future:
    try:
        return executor.submit(run, *call)
    except BrokenExecutor as error:  # as of a run that was submitted before
        future: Future = Future()
        future.set_exception(error)
        return future
