"""How far a study is: what is done, runs, failed or waits, and the time left."""

import time
from collections import Counter
from collections.abc import Iterable

from topoprune.study.grid import records_store
from topoprune.study.plans import describe, specs, variant
from topoprune.study.run_folder import finished_steps, run_folder, run_state
from topoprune.study.trial import Dense, Record, Removal, Spec, Trial, spec_key


def status(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> dict:
    """How far the specs of a profile are, see `plans.specs`. Nothing is written.

    Returns:
        path: of the records file.
        done, missing: one line for each spec.
        runs: one dict for each missing spec: its line as "run", its "progress" ("" if there is none), and its
            "state" with what else `run_folder.run_state` says.
        workers: number of processes at work.
        seconds_left: estimate from the times of stored records of the same kind and method, divided by the
            workers; None if no record is stored.

    Raises:
        ValueError, files.FileError: as `plans.specs` and `Store.load`.
    """
    store = records_store(name)
    stored = store.load()
    wanted = specs(name, seeds, methods, ratios)
    missing = [spec for spec in wanted if spec_key(spec) not in stored]
    runs = [{"run": describe(spec), "progress": _progress(spec), **run_state(run_folder(spec))} for spec in missing]
    workers = {(run["host"], run["process"]) for run in runs if run["state"] == "running"}
    seconds = seconds_left(missing, runs, [Record.from_json(line) for line in stored.values()])
    return {
        "path": str(store.path),
        "done": [describe(spec) for spec in wanted if spec_key(spec) in stored],
        "missing": [describe(spec) for spec in missing],
        "runs": runs,
        "workers": len(workers),
        "seconds_left": seconds and seconds / max(1, len(workers)),
    }


def status_lines(state: dict) -> list[str]:
    """What `status` returns, as lines for people."""
    left, workers = state["seconds_left"], state["workers"]
    counts = Counter(run["state"] for run in state["runs"])
    by_state = "".join(f", {counts[name]} {name}" for name in ("running", "failed", "dead", "waiting") if counts[name])
    return [
        f"{state['path']}: {len(state['done'])} done, {len(state['missing'])} missing{by_state}",
        *(f"  {_line(run)}" for run in state["runs"]),
        "time left: unknown, no record to estimate from"
        if left is None
        else f"time left: about {left / 60:.0f} min with {max(1, workers)} at work, from the records' own times",
    ]


def seconds_left(missing: list[Spec], runs: list[dict], stored: list[Record]) -> float | None:
    """Seconds that one process needs for what is missing, from the mean time of records alike; None without any.

    Args:
        missing: specs.
        runs: "state" and "since" (seconds since 1970) of each, see `run_folder.run_state`.
        stored: records to estimate from.
    """
    total = 0.0
    for spec, run in zip(missing, runs, strict=True):
        alike = [record for record in stored if _kind(record.spec) == _kind(spec)] or stored
        if not alike:
            return None
        mean = sum(record.provenance["seconds"] for record in alike) / len(alike)
        spent = time.time() - run["since"] if run["state"] == "running" else 0.0
        total += max(0.0, mean - spent)
    return total


def _progress(spec: Spec) -> str:
    """How far a run is, in words; nothing of a trial that has not begun."""
    steps = finished_steps(spec)
    if isinstance(spec, Dense):
        return f"epoch {steps['dense']} of {spec.recipe.epochs}" if steps["dense"] else ""
    if not run_folder(spec).exists():
        return ""
    if steps["dense"] < spec.dense.recipe.epochs:
        return f"dense network, epoch {steps['dense']} of {spec.dense.recipe.epochs}"
    if not isinstance(spec, Trial):
        return type(spec).__name__.lower()
    if steps["selected"]:
        return f"fine-tuning, epoch {steps['tuned']} of {spec.recovery.epochs}"
    return f"selection, layer {steps['layers']}" if steps["layers"] else "selection"


def _line(run: dict) -> str:
    parts = [f"{run['state']}: {run['run']}"]
    parts += [run["progress"]] if run["progress"] else []
    if run["state"] == "waiting":
        return ", ".join(parts)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run["since"]))
    parts.append(f"process {run['process']} on {run['host']}, {run['device']}, since {since}")
    if run["state"] == "dead":
        parts.append("which ended without a word; `run` continues from there")
    return ", ".join(parts) + (f": {run['error']}" if "error" in run else "")


def _kind(spec: Spec) -> tuple:
    chosen = variant(spec) if isinstance(spec, Trial | Removal) else None
    return type(spec).__name__, chosen, getattr(spec, "ratio", None)
