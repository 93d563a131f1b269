"""`python -m topoprune run` and `status`."""

import os
import sys

import pytest

from topoprune import study
from topoprune.__main__ import main


def test_run_and_status_report_in_a_line(tiny_study, folders, monkeypatch, capsys):
    monkeypatch.setenv("TOPOPRUNE_RESULTS", str(tiny_study.results))
    assert main(["run", "--profile", "tiny"]) == 0
    assert "7 records in" in capsys.readouterr().out
    assert main(["status", "--profile", "tiny", "--seeds", "0", "1", "2"]) == 0
    assert "7 done, 3 missing" in capsys.readouterr().out


def test_a_reader_who_has_seen_enough_of_the_status_is_no_error(folders, monkeypatch):
    """As in `status | head -1`: the reading end of the pipe is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["status", "--profile", "tiny"]) == 0
        pipe.write("what Python flushes at its end")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--profile", "huge"], "unknown profile 'huge': choose from quick, quick-ablation,"),
        (["--profile", "tiny", "--methods", "luck"], "unknown methods of tiny: luck; choose from l1, topological"),
        (["--profile", "tiny", "--ratios", "0.4"], "unknown ratios of tiny: 0.4; choose from 0.5"),
        (["--profile", "tiny", "--seeds", "-1"], "seeds must be a list of whole numbers from 0, got [-1]"),
        (["--profile", "tiny", "--device", "foo"], "device must be cpu, cuda or cuda:N, got 'foo'"),
        (["--profile", "tiny", "--device", "foo", "--workers", "2"], "device must be cpu, cuda or cuda:N, got 'foo'"),
        (["--profile", "tiny", "--workers", "0"], "workers must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, message, folders, capsys):
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_failed_run_is_answered_in_one_line(trained, monkeypatch, capsys):
    def exhausted(*arguments):
        raise MemoryError("too\nlarge")

    monkeypatch.setattr(study.grid, "run", exhausted)
    assert main(["run", "--profile", "tiny", "--seeds", "0", "--methods", "l1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("topoprune: error: 2 of 2 runs failed, the first: dense vgg16") and error.count("\n") == 1
    assert "the others are stored" not in error


@pytest.mark.parametrize("time", ["-1", "0", "nan", "inf", "1e300", "soon"])
def test_there_is_time_between_two_looks(time, capsys):
    with pytest.raises(SystemExit):
        main(["status", "--profile", "tiny", "--every", time])
    assert (
        f"argument --every: must be a number of seconds above 0, at most a day (86400), got '{time}'"
        in capsys.readouterr().err
    )


def test_a_cache_that_is_a_file_is_named_in_one_line(folders, monkeypatch, capsys):
    (folders / "cache").write_text("")
    for force in ([], ["--force"]):
        assert main(["run", "--profile", "tiny", "--seeds", "0", "--methods", "l1", *force]) == 2
        error = capsys.readouterr().err
        assert "cache" in error and "choose another folder" in error and error.count("\n") == 1
    assert main(["status", "--profile", "tiny"]) == 0
