"""The measurement of training runs at its small sizes, and the page can be made from what it writes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from topoprune import network
from topoprune.measure import training as bench_training
from topoprune.report import benchmarks, figures

PAGE = nbformat.read(Path(__file__).parent.parent / "book" / "engine.ipynb", as_version=4)
# Python 3.12 warns of the fork by which DataLoader starts its processes.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of a quick run on one thread."""
    path = tmp_path_factory.mktemp("bench") / "training.json"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the processes that it starts
        torch.set_num_threads(1)
        bench_training.main(["--quick", "--device", "cpu", "--output", str(path)])
        torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="module")
def measured(written):
    return benchmarks.benchmark(written)


def refuse(constant: str):
    raise AssertionError(f"{constant} in the JSON")


def test_every_number_is_finite(written):
    json.loads(written.read_text(), parse_constant=refuse)


def test_rates_and_times_are_positive(measured):
    assert all(row["TFLOP/s"] > 0 for row in measured["peaks"] + measured["loops"])
    assert all(row["lowest"] <= row["images/s"] <= row["highest"] for row in measured["loops"])
    assert all(row["ms a step"] > 0 and row["peak MiB"] != 0 for row in measured["growth"])
    assert measured["loops"][0]["times plain"] == 1


def test_a_trial_is_the_sum_of_its_parts(measured):
    for row in measured["trials"]:
        parts = row["selection (s)"] + row["removal (s)"] + 5 * row["s an epoch"] + 6 * row["evaluation (s)"]
        assert row["s a trial"] == pytest.approx(parts)
        assert row["trials an hour"] == pytest.approx(3600 * row["workers"] / parts)
        assert min(row[name] for name in ("selection (s)", "removal (s)", "s an epoch", "evaluation (s)")) > 0


def test_batches_cover_what_was_asked_for(measured):
    assert [row["batch"] for row in measured["batches"]] == [64, 128]
    assert all(row["usual images/s"] > 0 < row["ours images/s"] for row in measured["batches"])


def test_each_precision_is_measured_and_one_is_chosen(measured):
    rows = {row["precision"]: row for row in measured["precisions"]}
    assert rows.keys() == {"float32", "bfloat16"}
    assert all(row["images/s"] > 0 for row in rows.values())
    assert rows["float32"]["times float32"] == 1
    (chosen,) = (name for name, row in rows.items() if row["chosen"])
    assert {chosen, measured["loops"][-1]["precision"]} == {measured["peaks"][-1]["precision"]}


def test_convolutions_of_every_size_are_measured_both_ways(measured):
    rows = {row["image"]: row for row in measured["convolutions"]}
    assert list(rows) == ["32x32", "16x16", "8x8", "4x4", "2x2"]
    assert all(row["library (ms)"] > 0 < row["product (ms)"] for row in rows.values())
    assert all(rows[image]["chosen"] == "library" for image in ("32x32", "16x16", "8x8"))


def test_sections_can_be_chosen(tmp_path):
    path = tmp_path / "some.json"
    bench_training.main(["--quick", "--device", "cpu", "--sections", "peaks", "--output", str(path)])
    assert list(json.loads(path.read_text())) == ["machine", "settings", "peaks"]


def test_the_families_cover_the_step(measured):
    shares = {row["family"]: row["share (%)"] for row in measured["operations"]}
    assert sum(shares.values()) == pytest.approx(100)
    assert all(shares[family] > 0 for family in bench_training.FAMILIES)


def test_removal_counts_what_remains(measured):
    rows = {(row["ratio"], row["multiple"]): row for row in measured["removal"]}
    dense = rows.pop((0.0, 1))
    assert dense["FLOPs (%)"] == dense["efficiency (%)"] == 100
    assert all(row["parameters (M)"] < dense["parameters (M)"] for row in rows.values())
    assert all(rows[ratio, 8]["FLOPs (%)"] >= rows[ratio, 1]["FLOPs (%)"] for ratio in (0.5, 0.9))


@pytest.mark.parametrize("multiple", [1, 8])
def test_kept_filters_are_rounded_up(multiple):
    bed = replace(bench_training.prepare("cpu", quick=True), width=1 / 8)
    model, example = bench_training._network(bed), bed.data.example(2)
    kept = bench_training._kept(model, example, 0.3, multiple)
    for coupling in network.couplings(model, example):
        n, (layer,) = coupling.filters, coupling.layers
        wanted = n - int(n * 0.3)
        assert len(kept[layer]) % multiple == 0
        assert wanted <= len(kept[layer]) < wanted + multiple


def test_the_page_can_be_made(measured, written):
    made = [
        benchmarks.engine_loops(measured),
        benchmarks.engine_peaks(measured),
        benchmarks.engine_operations(measured),
        benchmarks.engine_removal(measured),
        benchmarks.engine_batches(measured),
        benchmarks.engine_trials(measured),
        benchmarks.engine_precisions(measured),
        benchmarks.engine_convolutions(measured),
        benchmarks.engine_growth(measured),
        benchmarks.engine_processes(measured),
        benchmarks.search_growth(benchmarks.benchmark()),
    ]
    on_cuda = benchmarks.benchmark(benchmarks.GRAPHICS)  # whose ways no CPU has
    made += [benchmarks.engine_loops(on_cuda), benchmarks.engine_removal(on_cuda)]
    assert all(isinstance(table, pd.DataFrame) and len(table) for table in made)
    for figure in (figures.engine_operations, figures.engine_removal, figures.engine_growth):
        assert figure(measured).axes
    prose = "\n".join(cell.source for cell in PAGE.cells if cell.cell_type == "markdown")
    for part, numbers in (
        ("engine", benchmarks.engine_numbers(measured)),
        ("emulated", benchmarks.processor_numbers(measured)),
        ("tiles", benchmarks.processor_numbers(measured)),
        ("cuda", benchmarks.cuda_numbers(on_cuda)),
    ):
        quoted = re.findall(rf"{{glue:text}}`{part}_(\w+)(?::([^`]*))?`", prose)
        assert quoted
        for name, format in quoted:
            assert f"{numbers[name]:{format}}"
