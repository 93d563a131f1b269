"""The benchmark of the fitness: its oracle, and at small sizes the whole of it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from topoprune.fitness import diagram_distance
from topoprune.measure import fitness, machine
from topoprune.report import benchmarks

BARS = arrays(np.float64, st.tuples(st.integers(0, 6), st.just(2)), elements=st.floats(0, 8, width=16)).map(np.sort)


@settings(max_examples=30, deadline=None)  # the first call compiles
@given(first=BARS, second=BARS)
def test_the_assignment_is_the_wasserstein_distance(first, second):
    assert fitness.assignment_distance(first, second) == pytest.approx(diagram_distance(first, second), abs=1e-9)


def test_tables_are_printed_and_kept_after_each_section(tmp_path, capsys):
    path = tmp_path / "folder" / "report.json"

    def first(factor):
        """The first table, and more."""
        assert not path.exists()
        return [{"n": 2 * factor, "name": "two"}]

    def second(factor):
        """The second table."""
        assert json.loads(path.read_text()) == {"machine": "mine", "first": [{"n": 6, "name": "two"}]}
        return []

    machine.run_sections({"first": first, "second": second}, (3,), {"machine": "mine"}, path)
    assert list(json.loads(path.read_text())) == ["machine", "first", "second"]
    printed = capsys.readouterr().out
    assert "The first table, and more. (0 s)" in printed and "two" in printed


def test_the_machine_is_described_without_host_or_path():
    described = json.dumps(machine.describe_machine(["numpy"]))
    assert json.loads(described)["numpy"] == np.__version__
    assert machine.platform.node() not in described and "/" not in described.replace("N/A", "")


@pytest.mark.slow
def test_a_new_measurement_has_the_columns_of_the_committed_one(tmp_path):
    path = tmp_path / "fitness.json"
    fitness.main(["--quick", "--epochs", "1", "--output", str(path)])
    new, committed = benchmarks.benchmark(path), benchmarks.benchmark()
    assert new.keys() == committed.keys()
    for section in fitness.SECTIONS:
        assert list(new[section][0]) == list(committed[section][0])
    differences = [row["largest relative difference"] for row in new["evaluations"] if row["way"].endswith("1e-6")]
    assert max(differences) < 1e-5
    assert benchmarks.bench_numbers(new).keys() == benchmarks.bench_numbers(committed).keys()
