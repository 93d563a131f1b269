"""What the explorer holds: means, intervals and single runs of the trials, and the portraits of layers."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from planted import networks, only_trials, planted, portrait
from scipy import stats

from topoprune import study
from topoprune.fitness import diagram_distance
from topoprune.report import figures, frames
from topoprune.report.figures.interactive import band, portraits, recoveries
from topoprune.study.profiles import CONVOLUTIONS

PUBLISHED = Path(__file__).parents[2] / "book" / "results"
OTHERS = study.specs("beyond-quarter")


@pytest.fixture(scope="module")
def published():
    """Trials of the study and of the networks beyond the thesis, and every portrait on record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPOPRUNE_RESULTS", str(PUBLISHED))
        patch.setenv("TOPOPRUNE_NO_RUN", "1")
        return study.records("study") + study.companion_records("study", "beyond")


def data_of(html: str) -> dict:
    return json.loads(html.split('id="explorer-data">')[1].split("</script>")[0])


def methods(group: dict, ratio: str) -> dict[str, dict]:
    return {method["name"]: method for method in group["ratios"][ratio]["methods"]}


def test_curves_are_means_of_the_runs_with_scipy_s_intervals(published):
    tests: dict[tuple, dict] = {}
    for record in only_trials(published):
        spec = record.spec
        cell = (spec.dense.width, f"{spec.ratio:g}", frames.name_of(spec))
        curve = [record.result["damage"]["test"], *(epoch["test"] for epoch in record.result["history"])]
        tests.setdefault(cell, {})[spec.seed] = 100 * np.array(curve)
    full, quarter = recoveries(published)
    drawn = {
        (width, ratio, method["name"]): method
        for width, group in ((1.0, full), (0.25, quarter))
        for ratio, cell in group["ratios"].items()
        for method in cell["methods"]
    }
    assert drawn.keys() == tests.keys()
    intervals = 0
    for cell, runs in tests.items():
        method, curves = drawn[cell], np.stack([*runs.values()])
        assert {int(seed) for seed in method["runs"]} == set(runs) and method["networks"] == len(runs)
        assert method["mean"] == pytest.approx(curves.mean(axis=0), rel=1e-3)
        assert all(method["runs"][seed] == pytest.approx(curve, rel=1e-3) for seed, curve in runs.items())
        if len(runs) < 3:
            ends = curves.min(axis=0), curves.max(axis=0)
        else:
            ends = stats.t.interval(0.95, len(runs) - 1, curves.mean(axis=0), stats.sem(curves, axis=0))
            intervals += 1
        assert method["t"] == (len(runs) >= 3)
        for name, expected in zip(("low", "high"), ends, strict=True):
            pairs = [(value, end) for value, end in zip(method[name], expected, strict=True) if value is not None]
            assert [value for value, _ in pairs] == pytest.approx([end for _, end in pairs], rel=1e-3, abs=1e-3)
            assert len(pairs) == len(expected) or np.ptp(curves, axis=0).min() < 1e-9
    assert intervals > 50


def test_recoveries_and_flops_are_counted_by_method(published):
    own = [record for record in published if record.spec not in OTHERS]
    (full,), rows = recoveries(own), frames.trials(own)
    for (ratio, name), cell in rows.groupby(["ratio", "method"]):
        method = methods(full, f"{ratio:g}")[name]
        assert method["recovered"] == cell["recovered"].sum()
        assert method["flops"] == pytest.approx(100 * cell["flops"].mean(), rel=1e-3)
        assert method["usual"] == (name in ("random", "L1", "L2", "FPGM", "topological"))
    assert full["ratios"]["0.5"]["dense"] == pytest.approx(frames.dense_accuracy(own), rel=1e-3)


def test_few_networks_have_their_range_and_equal_ones_no_interval():
    assert band(np.array([3.0])) == (3.0, 3.0) and band(np.array([3.0, 1.0])) == (1.0, 3.0)
    assert np.isnan(band(np.array([1.0, 1.0, 1.0]))).all()
    two = methods(recoveries(planted(2))[0], "0.5")["L1"]
    assert not two["t"]
    assert two["low"] == [min(values) for values in zip(*two["runs"].values(), strict=True)]
    equal = methods(recoveries(planted(3, noise=0.0))[0], "0.5")["L1"]
    assert equal["t"] and set(equal["low"]) == {None}


def test_networks_that_were_fine_tuned_otherwise_are_apart():
    records = planted(2)
    longer = [
        dataclasses.replace(
            record, spec=dataclasses.replace(record.spec, recovery=dataclasses.replace(record.spec.recovery, epochs=9))
        )
        for record in only_trials(records)
    ]
    one, other = recoveries([*records, *longer])
    assert (one["name"], other["name"]) == (
        "VGG-16 on cifar10, 5 epochs of fine-tuning",
        "VGG-16 on cifar10, 9 epochs of fine-tuning",
    )
    assert other["epochs"] == 9


def test_a_record_that_profiles_share_counts_once():
    records = planted(2)
    assert data_of(figures.explorer(records + records)) == data_of(figures.explorer(records))


def test_every_portrait_on_record_can_be_picked_and_says_what_was_kept(published):
    by_id = {layer["id"]: layer for layer in data_of(figures.explorer(published))["layers"]}
    found = frames.of_kind(published, study.Portrait)
    assert len(by_id) == len(found) == 1 + len(CONVOLUTIONS)
    assert [*by_id][:-1] == [f"{layer}-x0.25" for layer in CONVOLUTIONS]  # the network with most of them first
    assert by_id["features.24-x1"]["norms"] == []  # an older record
    for record in found:
        layer = by_id[f"{record.spec.layer}-x{record.spec.dense.width:g}"]
        assert {method["id"]: method["kept"] for method in layer["methods"]} == record.result["kept"]
        assert np.array(layer["plane"]) == pytest.approx(np.array(record.result["plane"]), rel=1e-3)
        for method in layer["methods"]:
            for q, pairs in record.result["diagrams"][method["id"]].items():
                full = np.reshape(record.result["diagrams"]["full"][q], (-1, 2))
                assert np.shape(method["diagrams"][q]) == np.shape(pairs)
                if len(full):
                    share = diagram_distance(full, pairs) / np.ptp(full, axis=1).sum()
                    assert method["distances"][q] == pytest.approx(share, rel=1e-3)
                else:
                    assert method["distances"][q] is None


def test_a_portrait_by_hand():
    (layer,) = portraits([*networks(1), portrait()])
    assert layer["name"] == "convolution 2, features.3" and layer["network"] == "VGG-16 on cifar10, seed 0"
    l1, topological = layer["methods"]
    assert (l1["name"], topological["name"]) == ("L1", "topological")
    assert l1["distances"] == {"0": 0.125, "1": 0.5}  # of bars 1 and 3 the bar of 1 dies; the loop goes to the diagonal
    assert l1["norm"] is None


def test_a_portrait_with_norms_says_their_share():
    record = portrait()
    record = dataclasses.replace(record, result={**record.result, "norms": [1.0, 2.0, 5.0]})
    (layer,) = portraits([record])
    assert layer["norms"] == [1.0, 2.0, 5.0] and layer["methods"][0]["norm"] == 75.0


def test_no_text_of_a_record_ends_the_script_and_nothing_is_loaded_from_elsewhere():
    record = portrait()
    spec = dataclasses.replace(record.spec, layer="</script><script>alert(1)</script>")
    html = figures.explorer([*planted(2), dataclasses.replace(record, spec=spec)])
    assert html.count("</script>") == 2 and "alert(1)" in json.dumps(data_of(html))
    assert "//" not in html.replace("</", "") and not re.search(r"\son\w+=", html)


def test_no_record_is_said_to_be_none():
    assert data_of(figures.explorer([])) == {"networks": [], "layers": []}
