"""The benchmark of training: its arithmetic, and at small sizes the whole of it."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent

from topoprune import network
from topoprune.measure import steps, training
from topoprune.measure.loops import our_loop, usual_loop
from topoprune.measure.scaling import first_filters
from topoprune.measure.workload import multiply_adds, quick_workload
from topoprune.report import benchmarks, figures

# Python 3.12 warns of the fork by which DataLoader starts its processes.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture(scope="module")
def tiny():
    """A workload of a few steps."""
    return replace(quick_workload("cpu"), width=1 / 16, images=64, batch=16, rounds=1)


def test_the_cost_of_vgg16_is_that_of_its_layers(tiny):
    model = tiny.network()
    side, expected = 32, 0
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            expected += side * side * layer.weight.numel()
        elif isinstance(layer, torch.nn.MaxPool2d):
            side //= 2
        elif isinstance(layer, torch.nn.Linear):
            expected += layer.weight.numel()
    assert multiply_adds(model) == expected


@pytest.mark.parametrize("multiple", [1, 8])
def test_kept_filters_are_rounded_up(tiny, multiple):
    model, images = tiny.network(), tiny.data.example(2)
    kept = first_filters(model, images, 0.3, multiple)
    for layer, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            n = module.out_channels
            wanted = n - int(n * 0.3)
            assert wanted <= len(kept[layer]) <= n
            assert len(kept[layer]) == n or len(kept[layer]) % multiple == 0
            assert len(kept[layer]) < wanted + multiple
    assert network.remove(model, images, kept)(images).shape == (2, 10)


def test_both_loops_train_and_are_timed(tiny):
    weights = tiny.network().state_dict()
    ours = tiny.network()
    assert our_loop(ours, tiny.resident_data(), tiny) > 0
    assert any(not torch.equal(weights[name], value) for name, value in ours.state_dict().items())
    assert usual_loop(tiny, loaders=0) > 0


def operation(name, seconds, *called):
    """An event of the profiler that takes so long beside the operations that it calls."""
    event = FunctionEvent(0, name, 0, 0, 1e6 * seconds + sum(child.cpu_time_total for child in called))
    for child in called:
        event.append_cpu_child(child)
        child.set_cpu_parent(event)
    return event


def test_an_operation_counts_for_its_own_family_or_for_that_of_its_caller():
    addition, onednn, allocation = operation("aten::add", 1), operation("aten::mkldnn", 2), operation("aten::empty", 4)
    events = [
        addition,
        onednn,
        allocation,
        operation("Optimizer.step#SGD.step", 8, addition),
        operation("aten::convolution", 16, onednn),
        operation("aten::batch_norm", 32, allocation),
        operation("aten::convolution_backward", 64),
        operation("aten::sum", 128),
    ]
    seconds = {family: value for family, value in steps.seconds_by_family(events, "cpu").items() if value}
    assert seconds == {
        "optimiser": 1 + 8,
        "convolution, forward": 2 + 16,
        "BatchNorm": 4 + 32,
        "convolution, backward": 64,
        "other": 128,
    }


def test_sections_can_be_chosen(tmp_path):
    path = tmp_path / "some.json"
    training.main(["--quick", "--device", "cpu", "--rounds", "1", "--sections", "precisions", "--output", str(path)])
    report = json.loads(path.read_text())
    assert list(report) == ["machine", "settings", "precisions"]
    rows = {row["precision"]: row for row in report["precisions"]}
    assert rows.keys() == {"float32", "bfloat16"}
    assert rows["float32"]["times float32"] == 1
    assert sum(row["chosen"] for row in rows.values()) == 1


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The JSON file of a quick run of every section, on one thread."""
    path = tmp_path_factory.mktemp("benchmark") / "training.json"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the processes that it starts
        torch.set_num_threads(1)
        training.main(["--quick", "--device", "cpu", "--output", str(path)])
        torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="module")
def measured(path):
    return benchmarks.benchmark(path)


def refuse(constant):
    raise AssertionError(f"{constant} in the JSON")


@pytest.mark.slow
def test_every_number_is_finite(path):
    json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.slow
def test_rates_and_times_are_positive(measured):
    assert all(row["TFLOP/s"] > 0 for row in measured["peaks"] + measured["loops"])
    assert all(row["lowest"] <= row["images/s"] <= row["highest"] for row in measured["loops"])
    assert all(row["ms a step"] > 0 for row in measured["growth"])
    assert measured["loops"][0]["times plain"] == 1


@pytest.mark.slow
def test_a_trial_is_the_sum_of_its_parts(measured):
    for row in measured["trials"]:
        parts = row["selection (s)"] + row["removal (s)"] + 5 * row["s an epoch"] + 6 * row["evaluation (s)"]
        assert row["s a trial"] == pytest.approx(parts)
        assert row["trials an hour"] == pytest.approx(3600 * row["workers"] / parts)
        assert min(row[name] for name in ("selection (s)", "removal (s)", "s an epoch", "evaluation (s)")) > 0


@pytest.mark.slow
def test_batches_cover_what_was_asked_for(measured):
    assert [row["batch"] for row in measured["batches"]] == [64, 128]
    assert all(row["usual images/s"] > 0 < row["ours images/s"] for row in measured["batches"])


@pytest.mark.slow
def test_training_uses_the_chosen_precision(measured):
    (chosen,) = (row["precision"] for row in measured["precisions"] if row["chosen"])
    assert chosen == measured["loops"][-1]["precision"] == measured["peaks"][-1]["precision"]


@pytest.mark.slow
def test_convolutions_of_every_size_are_measured_both_ways(measured):
    rows = {row["image"]: row for row in measured["convolutions"]}
    assert list(rows) == ["32x32", "16x16", "8x8", "4x4", "2x2"]
    assert all(row["library (ms)"] > 0 < row["product (ms)"] for row in rows.values())
    assert all(rows[image]["chosen"] == "library" for image in ("32x32", "16x16", "8x8"))


@pytest.mark.slow
def test_the_families_cover_the_step(measured):
    shares = {row["family"]: row["share (%)"] for row in measured["operations"]}
    assert sum(shares.values()) == pytest.approx(100)
    assert all(shares[family] > 0 for family in steps.FAMILIES)


@pytest.mark.slow
def test_removal_counts_what_remains(measured):
    rows = {(row["ratio"], row["multiple"]): row for row in measured["removal"]}
    dense = rows.pop((0.0, 1))
    assert dense["FLOPs (%)"] == dense["efficiency (%)"] == 100
    assert all(row["parameters (M)"] < dense["parameters (M)"] for row in rows.values())
    assert all(rows[ratio, 8]["FLOPs (%)"] >= rows[ratio, 1]["FLOPs (%)"] for ratio in (0.5, 0.9))


@pytest.mark.slow
def test_the_page_shows_a_new_measurement_as_it_shows_the_committed_one(measured):
    committed = benchmarks.benchmark(benchmarks.TRAINING)
    for table in (
        benchmarks.engine_loops,
        benchmarks.engine_peaks,
        benchmarks.engine_operations,
        benchmarks.engine_removal,
        benchmarks.engine_batches,
        benchmarks.engine_trials,
        benchmarks.engine_precisions,
        benchmarks.engine_convolutions,
        benchmarks.engine_growth,
        benchmarks.engine_processes,
    ):
        new, old = pd.DataFrame(table(measured)), pd.DataFrame(table(committed))
        assert list(new.columns) == list(old.columns), table.__name__
        assert len(new)
    for figure in (figures.engine_operations, figures.engine_removal, figures.engine_growth):
        labels = [[axes.get_xlabel() for axes in figure(data).axes] for data in (measured, committed)]
        assert labels[0] == labels[1]
    assert benchmarks.engine_numbers(measured).keys() == benchmarks.engine_numbers(committed).keys()
