"""What the folder of a run says: running, dead, failed or waiting, and how far."""

import contextlib
import multiprocessing
import os
import time

import pytest
import torch

from topoprune import files, genetic, study
from topoprune.study.run_folder import (
    DENSE,
    FAILED,
    RUNNING,
    claimed,
    failure_noted,
    finished_epochs,
    finished_generations,
    finished_steps,
    run_folder,
    run_state,
    start_over,
)


def hold(folder, claimed_now) -> None:
    with claimed(folder, "cpu"):
        claimed_now.set()
        time.sleep(600)


@contextlib.contextmanager
def held_by_another_process(folder):
    """A live process that holds a run's folder; it is killed at the end."""
    context = multiprocessing.get_context("fork")  # it computes nothing
    claimed_now = context.Event()
    process = context.Process(target=hold, args=(folder, claimed_now))
    process.start()
    try:
        assert claimed_now.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


def test_a_run_is_running_while_its_process_lives_and_dead_when_it_was_killed(tmp_path):
    folder = tmp_path / "run"
    assert run_state(folder) == {"state": "waiting"}
    with held_by_another_process(folder) as process:
        state = run_state(folder)
        assert state["state"] == "running" and state["process"] == process.pid and state["device"] == "cpu"
        assert abs(time.time() - state["since"]) < 600
    assert run_state(folder) == {**state, "state": "dead"}
    with claimed(folder, "cuda"):
        assert run_state(folder)["state"] == "running"
        assert run_state(folder)["process"] == os.getpid()
    assert run_state(folder) == {"state": "waiting"}


def test_an_error_is_noted_until_the_run_is_started_again(tmp_path):
    with pytest.raises(MemoryError), failure_noted(tmp_path, "cpu"):
        raise MemoryError("too\nlarge")
    state = run_state(tmp_path)
    assert state["state"] == "failed" and state["error"] == "MemoryError: too large"
    assert state["process"] == os.getpid() and state["device"] == "cpu"
    with failure_noted(tmp_path, "cpu"):
        assert run_state(tmp_path) == {"state": "waiting"}
    assert run_state(tmp_path) == {"state": "waiting"}


def test_a_run_that_starts_over_deletes_nothing(tmp_path):
    with claimed(tmp_path, "cpu"):
        for name in ("record.json", "selection.json", "search-0.json"):
            (tmp_path / name).write_text(name)
        with pytest.warns(files.FileWarning, match="for a reason; set aside as record.json.refused, starting over"):
            start_over(tmp_path, "record.json", "for a reason")
        kept = {f"{name}.refused" for name in ("record.json", "selection.json", "search-0.json")}
        assert {path.name for path in tmp_path.iterdir()} == {*kept, RUNNING}


def test_an_interruption_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt), failure_noted(tmp_path, "cpu"):
        raise KeyboardInterrupt
    assert run_state(tmp_path) == {"state": "waiting"}


@pytest.mark.parametrize("name", [RUNNING, FAILED])
def test_a_damaged_note_is_none(tmp_path, name):
    (tmp_path / name).write_text("{")
    assert run_state(tmp_path) == {"state": "waiting"}


def test_a_note_of_another_run_is_none(tmp_path):
    files.write_json(tmp_path / FAILED, "another-run", {"error": "x"})
    assert run_state(tmp_path) == {"state": "waiting"}


def test_finished_epochs_are_counted_and_a_damaged_checkpoint_has_none(tiny_study, tmp_path):
    whole = run_folder(tiny_study.records[0].spec, tiny_study.cache) / DENSE
    assert finished_epochs(whole) == 2
    assert finished_epochs(tmp_path / "none.safetensors") == 0
    (tmp_path / DENSE).write_bytes(b"x" * 40)
    assert finished_epochs(tmp_path / DENSE) == 0
    files.write_tensors(tmp_path / DENSE, {"x": torch.zeros(1)}, {"source": None})
    assert finished_epochs(tmp_path / DENSE) == 0


def test_finished_generations_are_counted_and_a_damaged_search_has_none(tmp_path):
    def fitness(population):
        return population.sum(axis=1).astype(float)

    file = tmp_path / "search-0.json"
    assert finished_generations(file) == 0
    genetic.evolve(12, 6, fitness, genetic.Search(population=4, generations=3), checkpoint=file)
    assert finished_generations(file) == 4  # the random first one too
    file.write_bytes(file.read_bytes()[:-1])
    assert finished_generations(file) == 0


def test_steps_of_a_run_that_has_not_begun(folders, tiny_study):
    nothing = {"dense": 0, "layers": 0, "generations": 0, "selected": 0, "tuned": 0}
    assert finished_steps(study.specs("tiny")[1]) == nothing
    of_trained = finished_steps(tiny_study.records[2].spec, tiny_study.cache)
    assert of_trained == {**nothing, "dense": 2}  # what the finished trial left is discarded
