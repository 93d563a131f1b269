"""Kills a real run again and again, and checks that nothing is lost: `python -m topoprune.measure.torture`.

A process carries out one small trial; it is killed (SIGKILL) at a random moment and started again,
until so many kills have landed. Most processes are forked from one that has done nothing but the
imports, so that kills land in the work; the others start from a new interpreter. Whatever a process
has finished must never be lost, no file may be torn, and every finished record must be that of a run
that was never interrupted, bit for bit, in everything but times and provenance. With `--cluster` a study
runs instead on a real Dask cluster that loses a worker, and must give the records of one process.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from topoprune import files, study
from topoprune.files import FileError, FileWarning
from topoprune.measure.machine import machine
from topoprune.study import workers
from topoprune.study.execution import without_times
from topoprune.study.locks import leftovers
from topoprune.study.provenance import provenance
from topoprune.study.run_folder import DENSE, FINE_TUNING, finished_steps, run_folder
from topoprune.study.store import Store
from topoprune.study.trial import Dense, Record, Trial, spec_key
from topoprune.training import Recipe

OUTPUT, CLUSTER = Path("_build/torture.json"), Path("_build/cluster.json")
NAME = "torture"
"""Of the records file."""

PHASES = ("start-up", "dense training", "selection", "fine-tuning", "record", "after the record")
SHARES = {"start-up": 0.12, "work": 0.63, "write": 0.25}
"""How kills are aimed: before the imports are done, any time after, at a file being written."""

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["topoprune.study.workers", "topoprune.fitness", "topoprune.genetic", "sklearn.datasets", "sklearn.model_selection"]
)

BEYOND = "File too large"
"""What the system says of a write beyond the limit that stands for a full disk."""


class TortureError(RuntimeError):
    """The tortured process ended by itself, with an error."""


@dataclass(frozen=True)
class Blow:
    """A kill to come: its aim (see `SHARES`) and its delay, as a share of the longest, in [0, 1)."""

    aim: str
    delay: float


def main(arguments: list[str] | None = None) -> int:
    """Run, print what came of it and write it as JSON; 1 where anything was lost or differs."""
    options = _parser().parse_args(arguments)
    if options.once:
        return once(options.once, options.epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = (
            cluster(folder, ["--profile", "quick"])
            if options.cluster
            else torture(folder, options.kills, options.seed, options.epochs)
        )
    output = options.output or (CLUSTER if options.cluster else OUTPUT)
    files.write(output, (json.dumps(found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1) if options.cluster else report(found))
    return 0 if (agrees if options.cluster else sound)(found) else 1


def specs(epochs: int) -> list[Dense | Trial]:
    """The dense network and the trial that are tortured, each trained for `epochs`."""
    recipe = Recipe(epochs=epochs, batch=128, peak_rate=0.1, muon_rate=0.05)  # both optimizers have a state
    dense = Dense("digits", "vgg16", 1 / 16, 0, recipe)
    return [dense, Trial(dense, "topological", 0.5, 0, recipe, {"population": 12, "generations": 6})]


def once(folder: Path, epochs: int, limit: int | None = None) -> int:
    """What the tortured process does: say that it is ready, carry out the trial.

    Args:
        folder: of its cache, its records and its complaints (`stderr`).
        epochs: of dense training and of fine-tuning.
        limit: bytes that a file may have, in place of a full disk; None for no limit.
    """
    print("ready", flush=True)
    os.dup2(os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(TOPOPRUNE_CACHE=str(folder / "cache"), TOPOPRUNE_RESULTS=str(folder / "results"))
    os.environ.pop("TOPOPRUNE_NO_RUN", None)
    workers.single_thread()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which the killed would leave behind
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        study.records(NAME, specs(epochs), "cpu")
    except FileError as error:
        print(f"topoprune: error: {error}", file=sys.stderr)
        return 2
    return 0


def torture(folder: Path, kills: int = 100, seed: int = 0, epochs: int = 4) -> dict:
    """Kill the trial `kills` times and count what came of it.

    Args:
        folder: an empty one; each trial gets its own cache and records file in it.
        kills: that must land; a run that is finished before its kill is counted and begun anew.
        seed: of the aims and delays. The delays are shares of a time that begins as the length of a
            run and follows the machine's load, so where a kill lands depends on the machine as well.
        epochs: of dense training and of fine-tuning.

    Raises:
        TortureError: a process ended with an error of its own.
    """
    started, around = time.perf_counter(), machine(["torch", "numpy", "deap", "filelock"])
    expected, longest = uninterrupted(folder / "expected", epochs)
    blows = blows_of(seed)
    landed, during, counts, differences = Counter(), Counter(), Counter(), []
    trial, bar = _begun(folder / "trial"), tqdm(total=kills, unit="kill", disable=None)
    while True:
        last = landed.total() >= kills
        before, leftovers = held(trial, epochs), _leftovers(trial, epochs)
        ready, killed = strike(trial, epochs, None if last else next(blows), longest)
        after = held(trial, epochs)
        counts["processes"] += 1
        counts["continued" if before > NOTHING else "began anew"] += ready
        counts["lost"] += after < before
        counts["torn"] += len(torn(trial))
        # Some seven kills to a finished trial, whatever else the machine does meanwhile.
        longest *= 1.05 if killed else 0.7
        if killed:
            where = phase(ready, after, epochs)
            landed[where] += 1
            bar.update()
            during[where] += bool(_leftovers(trial, epochs) - leftovers)
            continue
        counts["finished"] += 1
        counts["left over"] += len(_leftovers(trial, epochs))
        made = recorded(trial)
        counts["records compared"] += len(made)
        differences += difference(expected, made)
        if last:
            bar.close()
            break
        trial = _begun(folder / "trial")
    disk = full_disk(folder / "full", expected, epochs)
    return {
        "machine": around,
        **{k: provenance("cpu", 0.0)[k] for k in ("commit", "date")},
        "seconds": round(time.perf_counter() - started),
        "seed": seed,
        "epochs": epochs,
        "kills": landed.total(),
        "phases": [{"phase": name, "kills": landed[name], "while writing": during[name]} for name in PHASES],
        **{
            name: counts[name]
            for name in (
                "processes",
                "continued",
                "began anew",
                "finished",
                "lost",
                "torn",
                "left over",
                "records compared",
            )
        },
        "differences": differences,
        "full disk": disk,
    }


def sound(found: dict) -> bool:
    """Whether nothing was lost, torn or left over, no record differs, and a full disk did no harm."""
    return not any((found["lost"], found["torn"], found["left over"], found["differences"])) and all(
        case["named"] and case["kept"] and not case["damaged"] and case["continued to the same record"]
        for case in found["full disk"]
    )


def report(found: dict) -> str:
    """The counts as text; of the differences the first."""
    lines = [
        f"{row['phase']:>20} {row['kills']:4d} kills, {row['while writing']} of them while writing"
        for row in found["phases"]
    ]
    lines += [
        f"{name:>20} {found[name]:4d}"
        for name in (
            "kills",
            "processes",
            "continued",
            "began anew",
            "finished",
            "lost",
            "torn",
            "left over",
            "records compared",
        )
    ]
    lines += [f"{'differences':>20} {len(found['differences']):4d}", *found["differences"][:1]]
    lines += [
        f"full disk, {case['file']}: " + ", ".join(k for k, v in case.items() if v is True)
        for case in found["full disk"]
    ]
    return "\n".join([*lines, "sound" if sound(found) else "NOT SOUND"])


def uninterrupted(folder: Path, epochs: int) -> tuple[dict[str, dict], float]:
    """The records (by key, without times) of a run that nothing disturbs, and its seconds."""
    _run(_begun(folder), epochs)  # numba keeps what it compiles
    started = time.perf_counter()
    _run(_begun(folder), epochs)
    return recorded(folder), time.perf_counter() - started


def blows_of(seed: int):
    """An endless series of kills to come."""
    generator = random.Random(seed)
    while True:
        (aim,) = generator.choices(list(SHARES), list(SHARES.values()))
        yield Blow(aim, generator.random())


def strike(folder: Path, epochs: int, blow: Blow | None, longest: float) -> tuple[bool, bool]:
    """Start the process and kill it as `blow` says.

    Args:
        folder: of the trial.
        epochs: of its trainings.
        blow: None lets the process come to its end.
        longest: seconds that a delay of 1 stands for, about what an uninterrupted run takes.

    Returns:
        Whether its imports were done, and whether it was killed (else it had finished).
    """
    if blow is not None and blow.aim == "start-up":
        return _struck_from_the_start(folder, epochs, 2.0 + 6.0 * blow.delay)
    process = _forked(folder, epochs)
    if blow is not None:
        process.join((0.3 if blow.aim == "work" else 0.4) * longest * blow.delay)
        if blow.aim == "write":
            known = _leftovers(folder, epochs)
            while process.is_alive() and _leftovers(folder, epochs) <= known:
                pass  # a write takes milliseconds: no time to sleep
        process.kill()
    process.join()
    return True, _was_killed(process.exitcode, folder)


NOTHING = (0, 0, 0, 0, 0)


def held(folder: Path, epochs: int) -> tuple[int, ...]:
    """What the disk holds of a trial: a tuple that only grows, whatever happens.

    Records, finished epochs of the dense network, 1 for a finished selection, finished generations of
    its searches, finished epochs of fine-tuning. Of a trial on record the rest is forgotten.
    """
    _, trial = specs(epochs)
    made = _records(folder)
    if spec_key(trial) in made:
        return len(made), epochs, 1, 0, epochs
    at = finished_steps(trial, folder / "cache")
    return len(made), at["dense"], at["selected"], at["generations"], at["tuned"]


def phase(ready: bool, at: tuple[int, ...], epochs: int) -> str:
    """What a killed process was at, from what the disk holds then."""
    made, dense, selected, _, tuned = at
    if not ready:
        return "start-up"
    if made == len(specs(epochs)):
        return "after the record"
    if dense < epochs:
        return "dense training"
    if not selected:
        return "selection" if made else "record"
    return "fine-tuning" if tuned < epochs else "record"


def torn(folder: Path) -> list[str]:
    """Files that cannot be read back whole, or that were set aside as such."""
    bad = [file.name for file in folder.rglob("*.refused")]
    for file in (folder / "cache" / "runs").glob("*/[!.]*"):
        try:
            if file.suffix == ".safetensors":
                files.read_tensors(file)
            elif file.suffix == ".json":
                files.check_json(file)
        except FileError:
            bad.append(file.name)
    try:
        _records(folder)
    except (FileError, FileWarning):
        bad.append(f"{NAME}.jsonl")
    return bad


def recorded(folder: Path) -> dict[str, dict]:
    """Key -> record of a trial's folder, without times and provenance."""
    return {key: without_times(Record.from_json(record)) for key, record in _records(folder).items()}


def difference(expected, made, name: str = "") -> list[str]:
    """The first field in which two JSON values differ, as "field: x, not y"; nothing if they are equal.

    Floats are equal if they are so bit for bit.
    """
    if isinstance(expected, dict) and isinstance(made, dict) and expected.keys() == made.keys():
        pairs = [(f"{name}.{key}".lstrip("."), expected[key], made[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(made, list) and len(expected) == len(made):
        pairs = [(f"{name}[{i}]", a, b) for i, (a, b) in enumerate(zip(expected, made, strict=True))]
    else:
        same = files.canonical(expected) == files.canonical(made)
        return [] if same else [f"{name}: {_short(made)}, not {_short(expected)}"]
    return next((found for n, a, b in pairs if (found := difference(a, b, n))), [])


def full_disk(folder: Path, expected: dict[str, dict], epochs: int) -> list[dict]:
    """Two writes beyond a limit of 1 kB: of a checkpoint, and of the records file.

    Returns:
        For each: the file, whether the error names it and the cause in one line, and whether the
        same command, the limit lifted, came to the same record. No disk is filled: the limit is
        that of the process (RLIMIT_FSIZE), and the system refuses the write half way.
    """
    cases = []
    dense = specs(epochs)[0]
    for file in (DENSE, f"{NAME}.jsonl"):
        if file == DENSE:
            _begun(folder)
        else:  # the dense network is in the cache: its record is the next file to be written
            (folder / "results" / file).unlink()
        process = _forked(folder, epochs, 1024)
        process.join()
        last = _complaints(folder).strip().splitlines()[-1]
        before = held(folder, epochs)
        named = process.exitcode == 2 and file in last and BEYOND in last and "then run again" in last
        _run(folder, epochs)
        cases.append(
            {
                "file": file,
                "named": named,
                "damaged": len(torn(folder)),
                "kept": before[1] == (0 if file == DENSE else dense.recipe.epochs),
                "continued to the same record": not difference(expected, recorded(folder)),
            }
        )
    return cases


def cluster(folder: Path, part: list[str]) -> dict:
    """A study on a Dask cluster on the loopback, of whose two workers one is killed at a trial.

    Args:
        folder: of both runs' caches and records.
        part: arguments of `python -m topoprune run`, the profile first.

    Returns:
        machine, commit, date; command: what was run; records: how many; workers; killed: what kind of
        run the killed worker was at, "" if none was; seconds: of the cluster's run; differences: from
        the records that one worker alone made.
    """
    around = machine(["torch", "numpy", "deap", "distributed"])
    command = ["run", *part, "--device", "cpu"]
    _study(folder / "alone", [*command, "--workers", "1"]).wait()
    environment = _environment(folder / "cluster")
    with dask_cluster(environment) as (address, workers):
        started, killed = time.perf_counter(), ""
        process = _study(folder / "cluster", [*command, "--scheduler", address])
        while process.poll() is None:
            killed = killed or _kill_one(folder / "cluster" / "cache", workers)
            time.sleep(0.02)
        seconds = time.perf_counter() - started
    alone, made = (_all_records(folder / name) for name in ("alone", "cluster"))
    if not alone or process.returncode:
        raise TortureError(_complaints(folder / "cluster") or _complaints(folder / "alone"))
    return {
        "machine": around,
        **{k: provenance("cpu", 0.0)[k] for k in ("commit", "date")},
        "command": " ".join(["python -m topoprune", *command, "--scheduler ADDRESS"]),
        "records": len(made),
        "workers": len(workers),
        "killed": killed,
        "seconds": round(seconds),
        "differences": difference(alone, made),
    }


def agrees(found: dict) -> bool:
    """Whether the cluster did lose a worker, and gave the records of one worker all the same."""
    return bool(found["killed"]) and not found["differences"]


@contextlib.contextmanager
def dask_cluster(environment: dict[str, str], count: int = 2) -> Iterator[tuple[str, list]]:
    """A real scheduler and workers of one thread on the loopback; yields the address and the workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    dask = [
        ["dask_scheduler", "--port", str(port), *here],
        *[["dask_worker", address, "--nthreads", "1", "--no-nanny", *here]] * count,
    ]
    started = []
    try:
        for name, *options in dask:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"distributed.cli.{name}", *options],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _kill_one(cache: Path, workers: list) -> str:
    """SIGKILL the worker that fine-tunes a trial, if one is at it; what kind of run that was."""
    for sign in cache.glob("runs/trial-*/running.json"):
        with contextlib.suppress(FileError):
            _, at = files.check_json(sign)
            if (sign.parent / FINE_TUNING).exists() and at["process"] in [worker.pid for worker in workers]:
                os.kill(at["process"], signal.SIGKILL)
                return "trial"
    return ""


def _environment(folder: Path) -> dict[str, str]:
    own = {"TOPOPRUNE_CACHE": str(folder / "cache"), "TOPOPRUNE_RESULTS": str(folder / "results")}
    return {**{k: v for k, v in os.environ.items() if k != "TOPOPRUNE_NO_RUN"}, **own}


def _study(folder: Path, command: list[str]) -> subprocess.Popen:
    with open(_begun(folder) / "stderr", "w") as complaints:
        return subprocess.Popen(
            [sys.executable, "-m", "topoprune", *command],
            env=_environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        )


def _all_records(folder: Path) -> dict[str, dict]:
    return {
        key: without_times(Record.from_json(line))
        for file in (folder / "results").glob("*.jsonl")
        for key, line in Store(file).load().items()
    }


def _begun(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _forked(folder: Path, epochs: int, limit: int | None = None):
    """A process, its imports done, that carries out the trial."""
    process = PROCESSES.Process(target=_child, args=(folder, epochs, limit))
    process.start()
    return process


def _child(*arguments) -> None:
    sys.stdout = open(os.devnull, "w")
    sys.exit(once(*arguments))


def _run(folder: Path, epochs: int) -> None:
    process = _forked(folder, epochs)
    process.join()
    _was_killed(process.exitcode, folder)


def _struck_from_the_start(folder: Path, epochs: int, seconds: float) -> tuple[bool, bool]:
    """`strike` on a new interpreter, `seconds` after it was started."""
    command = [sys.executable, "-m", "topoprune.measure.torture", "--once", str(folder), "--epochs", str(epochs)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        return process.stdout.readline() == "ready\n", _was_killed(process.wait(), folder)


def _was_killed(status: int, folder: Path) -> bool:
    if status == -signal.SIGKILL:
        return True
    complaints = _complaints(folder)
    if status or FileWarning.__name__ in complaints:
        raise TortureError(f"the process ended with status {status}: {complaints.strip()[-2000:]}")
    return False


def _complaints(folder: Path) -> str:
    file = folder / "stderr"
    return file.read_text() if file.exists() else ""


def _records(folder: Path) -> dict[str, dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FileWarning)
        return Store(folder / "results" / f"{NAME}.jsonl").load()


def _leftovers(folder: Path, epochs: int) -> set[Path]:
    """Temporary names under which files are being, or were, written."""
    runs = [run_folder(spec, folder / "cache") for spec in specs(epochs)]
    places = [*runs, folder / "results" / f"{NAME}.jsonl"]
    return {file for place in places for file in leftovers(place)}


def _short(value) -> str:
    text = files.canonical(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m topoprune.measure.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="that must land (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the aims and delays")
    parser.add_argument("--epochs", type=int, default=4, help="of each training (default 4)")
    parser.add_argument("--cluster", action="store_true", help="a Dask cluster that loses a worker instead")
    parser.add_argument("--output", type=Path, help=f"JSON (default {OUTPUT}, {CLUSTER} with --cluster)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
