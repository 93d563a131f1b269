"""`status` tells done, running, failed, waiting and dead runs apart."""

import dataclasses
import os
import threading

import pytest
from test_run_folder import held_by_another_process

from topoprune import files, study
from topoprune.__main__ import main
from topoprune.study import progress
from topoprune.study.run_folder import SELECTION, claimed, run_folder
from topoprune.study.trial import Record


def states() -> dict[str, dict]:
    return {run["run"]: run for run in study.status("tiny", [0])["runs"]}


def shown(capsys) -> str:
    assert main(["status", "--profile", "tiny", "--seeds", "0"]) == 0
    return capsys.readouterr().out


def test_a_run_is_seen_while_it_runs_when_it_died_and_when_it_is_done(folders, capsys, tiny_study):
    dense, chosen, *_ = study.specs("tiny", [0])
    with held_by_another_process(run_folder(dense)) as process:
        assert study.status("tiny", [0])["workers"] == 1
        state = states()[study.describe(dense)]
        assert state["state"] == "running" and state["progress"] == ""
        text = shown(capsys)
        assert "0 done, 4 missing, 1 running, 3 waiting" in text
        assert f"seed 0, process {process.pid} on {state['host']}, cpu, since " in text
    assert states()[study.describe(dense)]["state"] == "dead"
    assert "which ended without a word; `run` continues from there" in shown(capsys)
    assert states()[study.describe(chosen)] == {"run": study.describe(chosen), "progress": "", "state": "waiting"}
    study.records_store("tiny").append(tiny_study.records[0].to_json())
    assert study.describe(dense) in study.status("tiny", [0])["done"]
    assert "1 done, 3 missing, 3 waiting" in shown(capsys)


def test_progress_is_told_in_words(trained):
    dense, chosen, *_, portrait = study.specs("tiny", [0])
    assert states()[study.describe(dense)]["progress"] == "epoch 2 of 2"
    assert states()[study.describe(chosen)]["progress"] == ""
    with claimed(run_folder(chosen), "cpu"):
        assert states()[study.describe(chosen)]["progress"] == "selection"
        (run_folder(chosen) / "search-0.json").write_text("")
        assert states()[study.describe(chosen)]["progress"] == "selection, layer 1"
        (run_folder(chosen) / SELECTION).write_text("")
        assert states()[study.describe(chosen)]["progress"] == "fine-tuning, epoch 0 of 2"
        (run_folder(dense) / "dense.safetensors").unlink()
        assert states()[study.describe(chosen)]["progress"] == "dense network, epoch 0 of 2"
    assert states()[study.describe(portrait)]["progress"] == ""


def test_a_failure_leaves_its_line_until_the_run_is_started_again(trained, monkeypatch, capsys):
    chosen = study.specs("tiny", [0])[1]
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_tensors", exhausted)
        with pytest.raises(study.RunError):
            study.records("tiny", [chosen])
    failed = states()[study.describe(chosen)]
    assert failed["state"] == "failed" and failed["error"] == "MemoryError: too large"
    assert failed["process"] == os.getpid() and failed["progress"] == "fine-tuning, epoch 0 of 2"
    assert "failed: l1 at ratio 0.5, seed 0, fine-tuning, epoch 0 of 2, process" in shown(capsys)
    study.records("tiny", [chosen])
    assert study.describe(chosen) in study.status("tiny", [0])["done"]


def exhausted(*arguments):
    raise MemoryError("too\nlarge")


def test_watch_looks_again_and_ends_when_nothing_is_missing(folders, capsys, tiny_study):
    wanted = {study.spec_key(spec) for spec in study.specs("tiny", [0])}
    records = [record for record in tiny_study.records if record.key in wanted]
    arguments = ["status", "--profile", "tiny", "--seeds", "0", "--watch", "--every", "0.01"]
    watch = threading.Thread(target=main, args=(arguments,), daemon=True)
    with claimed(run_folder(records[0].spec), "cpu"):
        watch.start()
        output = ""
        while "0 done, 4 missing, 1 running" not in output:
            assert watch.is_alive()
            output += capsys.readouterr().out
    for record in records:
        study.records_store("tiny").append(record.to_json())
    watch.join(60)
    assert not watch.is_alive()
    assert "4 done, 0 missing\ntime left: about 0 min" in capsys.readouterr().out


def test_status_counts_and_estimates(tiny_study, folders, monkeypatch):
    assert study.status("tiny")["seconds_left"] is None
    assert "time left: unknown" in study.status_lines(study.status("tiny"))[-1]
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tiny_study.results))
    state = study.status("tiny", seeds=[0, 1, 2])
    assert len(state["done"]) == 7 and len(state["missing"]) == 3
    assert state["seconds_left"] > 0
    assert study.status("tiny")["seconds_left"] == 0


def test_time_left_is_estimated_from_records_alike(monkeypatch):
    monkeypatch.setattr(progress.time, "time", lambda: 1000.0)
    missing = study.trial_specs("tiny", methods=["l1"])
    (other,) = study.trial_specs("tiny", [0], methods=["topological"])
    stored = [Record(missing[0], {}, {"seconds": 90.0}), Record(other, {}, {"seconds": 500.0})]
    now = [{"state": "running", "since": 940.0}, {"state": "running", "since": 0.0}]
    assert progress.seconds_left(missing, now, stored) == 30  # the second is overdue
    waiting = [{"state": "waiting"}] * 2
    assert progress.seconds_left(missing, waiting, stored) == 180
    assert progress.seconds_left(missing, waiting, stored[1:]) == 1000  # none is alike
    assert progress.seconds_left(missing, waiting, []) is None


def test_time_left_tells_the_searches_of_one_method_apart():
    """The genetic search takes minutes, the farthest points none."""
    search, cover = (
        study.trial_specs(name, [0], [method], [0.5])[0]
        for name, method in (("tiny", "topological"), ("beyond", "cover"))
    )
    assert search.method == cover.method
    budget = dataclasses.replace(search, options={**search.options, "generations": 9})
    stored = [Record(search, {}, {"seconds": 900.0}), Record(cover, {}, {"seconds": 10.0})]
    waiting = [{"state": "waiting"}]
    assert progress.seconds_left([cover], waiting, stored) == 10
    assert progress.seconds_left([budget], waiting, stored) == 900


def test_status_needs_no_permission_to_write(trained, monkeypatch):
    """A cache may be mounted read-only, or belong to another user."""
    chosen = study.specs("tiny", [0])[1]
    with held_by_another_process(run_folder(chosen)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", read_only(os.open))
            assert states()[study.describe(chosen)]["state"] == "running"
    monkeypatch.setattr(os, "open", read_only(os.open))
    assert states()[study.describe(chosen)]["state"] == "dead"


def read_only(open_file):
    def opened(path, flags, *arguments, **named):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", path)
        return open_file(path, flags, *arguments, **named)

    return opened
