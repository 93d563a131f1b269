"""`status` tells done, running, failed, waiting and dead runs apart, of real processes."""

import contextlib
import multiprocessing
import os
import time

import pytest
from conftest import TINY

from topoprune import genetic, study
from topoprune.__main__ import main
from topoprune.study import execution, progress, run_folder as folders_module
from topoprune.study.run_folder import run_folder
from topoprune.study.trial import Record


def states() -> dict[str, dict]:
    return {run["run"]: run for run in study.status("tiny", [0])["runs"]}


def work(started, wait) -> None:
    """A process that trains, and stops at its second epoch until it may go on."""
    from topoprune import training

    epoch = training._epoch

    def slow(*arguments):
        if arguments[-1] == 1:
            started.set()
            wait.wait()
        return epoch(*arguments)

    training._epoch = slow
    study.PROFILES["tiny"] = TINY
    study.records("tiny", study.specs("tiny", [0])[:2])


@contextlib.contextmanager
def at_work():
    """A real process in its second epoch of the dense network, and the way to let it go on."""
    context = multiprocessing.get_context("spawn")
    started, wait = context.Event(), context.Event()
    process = context.Process(target=work, args=(started, wait))
    process.start()
    try:
        assert started.wait(300)
        yield process, wait
    finally:
        process.kill()
        process.join()


def test_a_run_is_seen_while_it_runs_once_it_died_and_when_it_is_done(folders, capsys):
    dense, chosen, *_ = study.specs("tiny", [0])
    with at_work() as (process, _):
        seen = states()[study.describe(dense)]
        assert seen["state"] == "running" and seen["process"] == process.pid
        assert seen["progress"] == "epoch 1 of 2" and seen["device"] == "cpu"
        assert abs(time.time() - seen["since"]) < 3600
        assert study.status("tiny", [0])["workers"] == 1
        assert main(["status", "--profile", "tiny", "--seeds", "0"]) == 0
        shown = capsys.readouterr().out
        assert "0 done, 4 missing, 1 running, 3 waiting" in shown
        assert f"epoch 1 of 2, process {process.pid} on {seen['host']}, cpu, since " in shown
    assert states()[study.describe(dense)]["state"] == "dead"
    assert states()[study.describe(chosen)] == {"run": study.describe(chosen), "progress": "", "state": "waiting"}
    study.records("tiny", [dense])
    assert study.describe(dense) in study.status("tiny", [0])["done"]
    assert main(["status", "--profile", "tiny", "--seeds", "0"]) == 0
    assert "1 done, 3 missing, 3 waiting" in capsys.readouterr().out


def test_a_failure_leaves_its_line_until_the_run_is_begun_again(folders, monkeypatch, capsys):
    dense, chosen, *_ = study.specs("tiny", [0])

    def exhausted(*arguments, **options):
        raise MemoryError("too\nlarge")

    with monkeypatch.context() as patch:
        patch.setattr(execution, "run_selection", exhausted)
        with pytest.raises(MemoryError):
            study.records("tiny", [dense, chosen])
    failed = states()[study.describe(chosen)]
    assert failed["state"] == "failed" and failed["error"] == "MemoryError: too large"
    assert failed["process"] == os.getpid() and failed["progress"] == "selection"
    assert main(["status", "--profile", "tiny", "--seeds", "0"]) == 0
    assert "failed: l1 at ratio 0.5, seed 0, selection, process" in capsys.readouterr().out
    study.records("tiny", [chosen])
    assert study.describe(chosen) in study.status("tiny", [0])["done"]


def test_watch_ends_when_nothing_is_left(folders, capsys):
    """It looks again while a process works, and stops by itself."""
    import threading

    wanted = study.specs("tiny", [0])
    with at_work() as (process, wait):
        watch = threading.Thread(
            target=main,
            daemon=True,
            args=(["status", "--profile", "tiny", "--seeds", "0", "--watch", "--every", "0.05"],),
        )
        watch.start()
        wait.set()
        process.join()
        study.records("tiny", wanted)
        watch.join(60)
        assert not watch.is_alive()
    shown = capsys.readouterr().out
    assert "1 running" in shown and "4 done, 0 missing\ntime left: about 0 min" in shown


def test_time_left_is_shared_out_among_the_workers(folders):
    missing = study.trial_specs("tiny", methods=["l1"])
    found = [Record(missing[0], {}, {"seconds": 90.0})]
    now = [{"state": "running", "since": time.time() - 60}, {"state": "running", "since": 0.0}]
    assert progress.seconds_left(missing, now, found) == pytest.approx(30, abs=5)
    assert progress.seconds_left(missing, [{"state": "waiting"}] * 2, found) == 180
    assert progress.seconds_left(missing, [{"state": "waiting"}] * 2, []) is None


def test_a_sign_that_is_no_sign_is_none(folders):
    folder = run_folder(study.specs("tiny", [0])[0])
    assert folders_module.run_state(folder) == {"state": "waiting"}
    folder.mkdir(parents=True)
    (folder / "running.json").write_text("{")
    assert folders_module.run_state(folder) == {"state": "waiting"}
    assert folders_module.finished_epochs(folder / "none.safetensors") == 0
    (folder / "dense.safetensors").write_bytes(b"x" * 40)
    assert folders_module.finished_epochs(folder / "dense.safetensors") == 0


def test_finished_generations_are_counted_and_a_damaged_search_has_none(tmp_path):
    def fitness(population):
        return population.sum(axis=1).astype(float)

    file = tmp_path / "search-0.json"
    assert folders_module.finished_generations(file) == 0
    genetic.evolve(12, 6, fitness, genetic.Search(population=4, generations=3), checkpoint=file)
    assert folders_module.finished_generations(file) == 4  # the random first one too
    file.write_bytes(file.read_bytes()[:-1])
    assert folders_module.finished_generations(file) == 0
