"""What a study has, lacks and runs now."""

import time
from collections import Counter
from collections.abc import Iterable

from topoprune.study import signs
from topoprune.study.execution import reached, run_folder
from topoprune.study.grid import records_store
from topoprune.study.profiles import describe, specs
from topoprune.study.trial import Dense, Portrait, Record, Trial, spec_key


def status(
    name: str,
    seeds: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    ratios: Iterable[float] | None = None,
) -> dict:
    """What the store has and lacks of `specs`, and how the runs fare that share this cache.

    Returns:
        path: of the records file.
        done, missing: lists of descriptions.
        runs: for each missing one its description as `run`, how far it `reached` ("" where nothing
            is there), and what `signs.state` says of its folder.
        workers: processes that are at it now.
        seconds_left: estimate from the stored records' own times of the same kind and method, shared
            out among the workers; None while nothing is there to estimate from.
    """
    store = records_store(name)
    found = store.load()
    wanted = specs(name, seeds, methods, ratios)
    missing = [spec for spec in wanted if spec_key(spec) not in found]
    runs = [{"run": describe(spec), "reached": _reached(spec), **signs.state(run_folder(spec))} for spec in missing]
    workers = {(run["host"], run["process"]) for run in runs if run["state"] == "running"}
    left = _estimate(missing, runs, [Record.from_json(line) for line in found.values()])
    return {
        "path": str(store.path),
        "done": [describe(s) for s in wanted if spec_key(s) in found],
        "missing": [describe(s) for s in missing],
        "runs": runs,
        "workers": len(workers),
        "seconds_left": left and left / max(1, len(workers)),
    }


def status_lines(state: dict) -> list[str]:
    """What `status` found, for people."""
    left, workers = state["seconds_left"], state["workers"]
    counts = Counter(run["state"] for run in state["runs"])
    counted = "".join(f", {counts[name]} {name}" for name in ("running", "failed", "dead", "waiting") if counts[name])
    return [
        f"{state['path']}: {len(state['done'])} done, {len(state['missing'])} missing{counted}",
        *(f"  {_line(run)}" for run in state["runs"]),
        "time left: unknown, no record to estimate from"
        if left is None
        else f"time left: about {left / 60:.0f} min with {max(1, workers)} at work, from the records' own times",
    ]


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
