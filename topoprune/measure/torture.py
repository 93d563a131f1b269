"""Kill a real run again and again, and check that nothing is lost: `python -m topoprune.measure.torture`.

A process carries out one small trial. It is killed (SIGKILL) at a random moment and started again, until so many
kills have landed. Most processes are forked from one that has done the imports, so that kills land in the work; the
others start from a new interpreter. Finished work must never be lost, no file may be damaged, and every record must
equal that of an uninterrupted run, bit for bit, in everything but times and provenance.

With `--cluster` a study runs instead on a real Dask cluster that loses a worker, see `topoprune.measure.cluster`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from topoprune import files
from topoprune.measure.cluster import agrees, torture_cluster
from topoprune.measure.machine import describe_machine
from topoprune.measure.saved_state import (
    Progress,
    comparable_records,
    damaged_files,
    first_difference,
    progress,
)
from topoprune.measure.tortured_run import RECORDS_FILE, Kill, TorturedRun, carry_out, random_kills
from topoprune.study.provenance import provenance
from topoprune.study.run_folder import DENSE

OUTPUT, CLUSTER_OUTPUT = Path("_build/torture.json"), Path("_build/cluster.json")
PHASES = ("start-up", "dense training", "selection", "fine-tuning", "record", "after the record")
COUNTS = ("processes", "continued", "began anew", "finished", "lost", "torn", "left over", "records compared")
NOTHING_DONE = Progress(0, 0, 0, 0, 0)
TOO_LARGE = "File too large"
"""What the system says of a write beyond the limit that stands for a full disk."""


def main(arguments: list[str] | None = None) -> int:
    """Run, print and write the report; the exit status is 1 if anything was lost or differs."""
    options = _parser().parse_args(arguments)
    if options.once:
        return carry_out(TorturedRun(options.once, options.epochs))
    with tempfile.TemporaryDirectory() as folder:
        if options.cluster:
            report = torture_cluster(Path(folder), ["--profile", "quick"])
        else:
            report = torture(Path(folder), options.kills, options.seed, options.epochs)
    text = json.dumps(report, indent=1)
    files.write(options.output or (CLUSTER_OUTPUT if options.cluster else OUTPUT), f"{text}\n".encode())
    print(text if options.cluster else report_text(report))
    return 0 if (agrees if options.cluster else is_sound)(report) else 1


def torture(folder: Path, kills: int = 100, seed: int = 0, epochs: int = 4) -> dict[str, Any]:
    """Kill the trial `kills` times and report what came of it.

    Args:
        folder: an empty one; every run gets a cache and a records file of its own in it.
        kills: number that must land. A run that finishes before its kill is counted and begun anew.
        seed: of the moments and delays. Delays are shares of a time that begins as the length of a run and follows
            the machine's load, so where a kill lands depends on the machine too.
        epochs: of dense training and of fine-tuning.

    Raises:
        TortureError: a process ended with an error of its own.
    """
    started, machine = time.perf_counter(), describe_machine(["torch", "numpy", "deap", "filelock"])
    expected, longest = run_undisturbed(TorturedRun(folder / "expected", epochs))
    counts, by_phase, while_writing, differences = _kill_repeatedly(
        TorturedRun(folder / "trial", epochs), kills, random_kills(seed), expected, longest
    )
    full_disk = fill_disk(TorturedRun(folder / "full", epochs), expected)
    facts = provenance("cpu", 0.0)
    return {
        "machine": machine,
        "commit": facts["commit"],
        "date": facts["date"],
        "seconds": round(time.perf_counter() - started),
        "seed": seed,
        "epochs": epochs,
        "kills": by_phase.total(),
        "phases": [
            {"phase": phase, "kills": by_phase[phase], "while writing": while_writing[phase]} for phase in PHASES
        ],
        **{name: counts[name] for name in COUNTS},
        "differences": differences,
        "full disk": full_disk,
    }


def run_undisturbed(run: TorturedRun) -> tuple[dict[str, Any], float]:
    """Records of a run that nothing disturbs, without times, and its seconds."""
    run.emptied().finish()  # numba keeps what it compiles
    started = time.perf_counter()
    run.emptied().finish()
    return comparable_records(run.folder), time.perf_counter() - started


def _kill_repeatedly(
    run: TorturedRun, kills: int, schedule: Iterator[Kill], expected: dict[str, Any], longest: float
) -> tuple[Counter[str], Counter[str], Counter[str], list[str]]:
    """Counts of `COUNTS`, kills by phase, kills by phase while a file was being written, and differences."""
    counts, by_phase, while_writing = Counter[str](), Counter[str](), Counter[str]()
    differences: list[str] = []
    run.emptied()
    with tqdm(total=kills, unit="kill", disable=None) as bar:
        while True:
            last = by_phase.total() >= kills
            before, known = progress(run.folder, run.trial), run.temporary_files()
            outcome = run.run_and_kill(None if last else next(schedule), longest)
            after = progress(run.folder, run.trial)
            counts["processes"] += 1
            counts["continued" if before > NOTHING_DONE else "began anew"] += outcome.imported
            counts["lost"] += after < before
            counts["torn"] += len(damaged_files(run.folder))
            longest *= 1.05 if outcome.killed else 0.7  # about seven kills to a finished trial, under any load
            if outcome.killed:
                phase = phase_of(after, run) if outcome.imported else "start-up"
                by_phase[phase] += 1
                while_writing[phase] += bool(run.temporary_files() - known)
                bar.update()
                continue
            records = comparable_records(run.folder)
            counts["finished"] += 1
            counts["left over"] += len(run.temporary_files())
            counts["records compared"] += len(records)
            differences += first_difference(expected, records)
            if last:
                return counts, by_phase, while_writing, differences
            run.emptied()


def phase_of(after: Progress, run: TorturedRun) -> str:
    """Which of `PHASES` a process was in when it was killed, from what is on disk."""
    if after.records == len(run.specs):
        return "after the record"
    if after.dense_epochs < run.epochs:
        return "dense training"
    if not after.selected:
        return "selection" if after.records else "record"
    return "fine-tuning" if after.tuning_epochs < run.epochs else "record"


def fill_disk(run: TorturedRun, expected: dict[str, Any]) -> list[dict[str, Any]]:
    """Let two writes fail at 1 kB, of a checkpoint and of the records file; then continue without the limit.

    No disk is filled. The limit is one of the process (RLIMIT_FSIZE), and the system refuses the write half way.

    Returns:
        For each file: whether the error named it, the cause and the cure in one line; the number of damaged files;
        whether earlier work was kept; and whether the same command came to the same record.
    """
    return [_fail_at_checkpoint(run.emptied(), expected), _fail_at_records(run, expected)]


def _fail_at_checkpoint(run: TorturedRun, expected: dict[str, Any]) -> dict[str, Any]:
    return _fail_and_continue(run, expected, DENSE, epochs_kept=0)


def _fail_at_records(run: TorturedRun, expected: dict[str, Any]) -> dict[str, Any]:
    (run.folder / "results" / RECORDS_FILE).unlink()  # the cache holds the dense network: its record is written next
    return _fail_and_continue(run, expected, RECORDS_FILE, epochs_kept=run.epochs)


def _fail_and_continue(run: TorturedRun, expected: dict[str, Any], file: str, epochs_kept: int) -> dict[str, Any]:
    process = run.start(file_limit=1024)
    process.join()
    last_line = run.stderr().strip().splitlines()[-1]
    kept = progress(run.folder, run.trial).dense_epochs == epochs_kept
    run.finish()
    return {
        "file": file,
        "named": process.exitcode == 2 and all(part in last_line for part in (file, TOO_LARGE, "then run again")),
        "damaged": len(damaged_files(run.folder)),
        "kept": kept,
        "continued to the same record": not first_difference(expected, comparable_records(run.folder)),
    }


def is_sound(report: dict[str, Any]) -> bool:
    """Whether nothing was lost, damaged or left over, no record differs, and a full disk did no harm."""
    return not any((report["lost"], report["torn"], report["left over"], report["differences"])) and all(
        case["named"] and case["kept"] and not case["damaged"] and case["continued to the same record"]
        for case in report["full disk"]
    )


def report_text(report: dict[str, Any]) -> str:
    """The report as text, with the first difference only."""
    lines = [
        f"{row['phase']:>20} {row['kills']:4d} kills, {row['while writing']} of them while writing"
        for row in report["phases"]
    ]
    lines += [f"{name:>20} {report[name]:4d}" for name in ("kills", *COUNTS)]
    lines += [f"{'differences':>20} {len(report['differences']):4d}", *report["differences"][:1]]
    lines += [
        f"full disk, {case['file']}: " + ", ".join(name for name, value in case.items() if value is True)
        for case in report["full disk"]
    ]
    return "\n".join([*lines, "sound" if is_sound(report) else "NOT SOUND"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m topoprune.measure.torture", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=100, help="number of kills that must land (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and delays (default 0)")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each training (default 4)")
    parser.add_argument("--cluster", action="store_true", help="a Dask cluster that loses a worker instead")
    parser.add_argument("--output", type=Path, help=f"JSON file (default {OUTPUT}, {CLUSTER_OUTPUT} with --cluster)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
