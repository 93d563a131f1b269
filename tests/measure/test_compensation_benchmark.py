"""The benchmark of compensation, at an eighth of the width."""

import json

import pytest

from topoprune.measure import compensation
from topoprune.report.benchmarks import compensation_table


@pytest.mark.slow
def test_the_benchmark_writes_what_the_chapter_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(compensation, "CHOICE_IMAGES", 64)
    monkeypatch.setattr(compensation, "MENDING_IMAGES", 400)
    monkeypatch.setattr(compensation, "NETWORKS", {"squeezenet1_1": (128, 64)})
    output = tmp_path / "compensation.json"
    compensation.main(["--width", "0.125", "--output", str(output)])
    measured = json.loads(output.read_text())
    assert {"processor", "threads"} <= set(measured)
    assert compensation_table(measured, "choices")["choice"].tolist() == list(compensation.CHOICES)
    for section, rows in (("ratios", 4), ("networks", 1)):
        table = compensation_table(measured, section)
        assert len(table) == rows and (table["seconds"] > 0).all() and table.notna().all(axis=None)
