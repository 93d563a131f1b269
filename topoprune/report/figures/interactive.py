"""The explorer, in which a reader asks how networks recover, and what each method keeps in a layer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from topoprune.fitness import diagram_distance
from topoprune.report.evidence import LEAST_SEEDS
from topoprune.report.evidence.statistics import t_interval
from topoprune.report.figures.drawing import COLOURS, MARKERS
from topoprune.report.frames import LAYERWISE_NAMES, NAMES, methods_in, of_kind, recovery_frame, trials
from topoprune.study import Dense, Portrait, Record, Trial
from topoprune.study.profiles import CONVOLUTIONS

ACCURACY = "test accuracy (%)"

DIGITS = 4
"""Significant digits of the numbers that a browser draws."""


CONTROLS = """
<link rel="stylesheet" href="../_static/explorer.css">
<noscript><p>The explorer needs JavaScript. The <a href="comparison.html">comparison of all methods</a> has tables of
the same records, and <a href="topological.html">the topological pruner</a> has the pictures of one layer.</p>
</noscript>
<form id="explorer-form" hidden>
<fieldset><legend>Question</legend>
<label><input type="radio" name="question" value="recovery" checked> How do networks recover?</label>
<label><input type="radio" name="question" value="layer"> What does each method keep in a layer?</label>
</fieldset>
<section id="explorer-recovery" aria-label="Recovery">
<div class="explorer-row">
<label for="explorer-networks">Networks</label> <select id="explorer-networks" name="networks"></select>
<label for="explorer-ratio">Filters removed</label> <select id="explorer-ratio" name="ratio"></select>
</div>
<fieldset id="explorer-methods"><legend>Methods</legend></fieldset>
<div class="explorer-row">
<label><input type="checkbox" name="runs"> show single runs</label>
<label><input type="checkbox" name="after"> leave out the accuracy before fine-tuning</label>
</div>
<figure><div id="explorer-curves"></div><figcaption id="explorer-band"></figcaption></figure>
<p id="explorer-recovery-said" role="status"></p>
<table id="explorer-recovery-table" class="table"></table>
</section>
<section id="explorer-layer-view" aria-label="Layer" hidden>
<div class="explorer-row">
<label for="explorer-layer">Layer</label> <select id="explorer-layer" name="layer"></select>
<label for="explorer-method">Method</label> <select id="explorer-method" name="method"></select>
</div>
<p id="explorer-layer-said" role="status"></p>
<div class="explorer-panels">
<figure><figcaption>Filters in the plane</figcaption><div id="explorer-plane"></div>
<div class="explorer-row"><label for="explorer-filter">Filter</label>
<input type="range" id="explorer-filter" name="filter" min="0" step="1" value="0">
<output for="explorer-filter" id="explorer-filter-said"></output></div></figure>
<figure><figcaption>Barcode: a bar is a cluster (H0) or a loop (H1)</figcaption><div id="explorer-bars"></div></figure>
<figure><figcaption>Diagram of dimension 0: where clusters merge</figcaption><div id="explorer-h0"></div></figure>
<figure><figcaption>Diagram of dimension 1: loops</figcaption><div id="explorer-h1"></div></figure>
</div>
<p>The plane keeps the distances of the filters' weights as well as it can (multidimensional scaling). All clusters
are born at distance 0.</p>
</section>
</form>
"""
"""The controls that `_static/explorer.js` fills; without JavaScript they are hidden."""


def explorer(records: Sequence[Record]) -> str:
    """HTML that holds mean curves, single runs and portraits; `_static/explorer.js` draws them.

    Args:
        records: of any profiles: trials with their dense networks, and portraits.
    """
    records = [*{record.key: record for record in records}.values()]  # profiles may share some
    data = json.dumps({"networks": recoveries(records), "layers": portraits(records)}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # no text of a record ends the script
    return (
        f'<div id="explorer">{CONTROLS}</div><script type="application/json" id="explorer-data">{data}'
        '</script><script src="../_static/explorer.js"></script>'
    )


def recoveries(records: Sequence[Record]) -> list[dict]:
    """The curves of networks that were trained and fine-tuned alike, group by group.

    Returns:
        For each group: name; epochs; ratios: ratio -> "dense" (mean test accuracy) and "methods", see `_method`.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in of_kind(records, Trial):
        alike = (replace(record.spec.dense, seed=0), record.spec.recovery)
        groups.setdefault(alike, []).append(record)
    dense_records = of_kind(records, Dense)
    return [_group(dense, recovery.epochs, [*dense_records, *runs]) for (dense, recovery), runs in groups.items()]


def portraits(records: Sequence[Record]) -> list[dict]:
    """Each portrayed layer, those of the network with most of them first.

    Returns:
        For each: id, name, network; norms of the filters (empty in older records); plane: their coordinates; full:
        diagrams of the layer; methods: see `_choice`.
    """
    found = of_kind(records, Portrait)
    networks = [record.spec.dense for record in found]
    return [_layer(record) for record in sorted(found, key=lambda one: -networks.count(one.spec.dense))]


def band(values: np.ndarray) -> tuple[float, float]:
    """The 95 % t-interval of the mean of three networks or more, the least and the largest value of fewer.

    >>> band(np.array([1.0, 4.0]))
    (1.0, 4.0)
    """
    if len(values) >= LEAST_SEEDS:
        return t_interval(values)
    return float(np.min(values)), float(np.max(values))


def _group(dense: Dense, epochs: int, records: list[Record]) -> dict:
    rows, curves = trials(records), recovery_frame(records)
    ratios = {}
    for ratio, cell in rows.groupby("ratio"):
        ratios[f"{ratio:g}"] = {
            "dense": _rounded(cell.drop_duplicates("seed")["dense test"].mean()),
            "methods": [
                _method(
                    name, cell[cell["method"] == name], curves[(curves["method"] == name) & (curves["ratio"] == ratio)]
                )
                for name in methods_in(cell)
            ],
        }
    return {"name": f"{_network(dense)}, {epochs} epochs of fine-tuning", "epochs": epochs, "ratios": ratios}


def _method(name: str, rows: pd.DataFrame, curves: pd.DataFrame) -> dict:
    """One method at one ratio.

    Returns:
        name, colour, marker; usual: whether the thesis compares it; networks; t: whether the band is a t-interval;
        mean, low, high: test accuracy (%) by epoch, from 0 on; runs: seed -> the same of one network; flops: left
        (%); recovered: how many networks did.
    """
    by_epoch = curves.pivot(index="epoch", columns="seed", values=ACCURACY).to_numpy()
    low, high = np.transpose([band(values) for values in by_epoch])
    runs = {int(seed): run.sort_values("epoch")[ACCURACY] for seed, run in curves.groupby("seed")}
    return {
        "name": name,
        "colour": to_hex(COLOURS.get(name, "grey")),
        "marker": MARKERS.get(name, "o"),
        "usual": name in LAYERWISE_NAMES,
        "networks": len(rows),
        "t": len(rows) >= LEAST_SEEDS,
        "mean": _all_rounded(by_epoch.mean(axis=1)),
        "low": _all_rounded(low),
        "high": _all_rounded(high),
        "runs": {seed: _all_rounded(values) for seed, values in runs.items()},
        "flops": _rounded(100 * rows["flops"].mean()),
        "recovered": int(rows["recovered"].sum()),
    }


def _layer(portrait: Record[Portrait]) -> dict:
    spec, result = portrait.spec, portrait.result
    number = f"convolution {CONVOLUTIONS.index(spec.layer) + 1}, " if spec.layer in CONVOLUTIONS else ""
    return {
        "id": f"{spec.layer}-x{spec.dense.width:g}",
        "name": f"{number}{spec.layer}",
        "network": f"{_network(spec.dense)}, seed {spec.dense.seed}",
        "norms": _all_rounded(result.get("norms", [])),
        "plane": [_all_rounded(point) for point in result["plane"]],
        "full": _drawn(result["diagrams"]["full"]),
        "methods": [_choice(method, result) for method in spec.methods],
    }


def _choice(method: str, result: dict) -> dict:
    """What a method keeps of a layer.

    Returns:
        id, name, colour; kept: indices; diagrams; distances: of the diagrams from those of the layer, as shares of its
        total persistence (None without any); norm: share (%) of the summed norms that is kept, if they are on record.
    """
    kept, full, own = result["kept"][method], result["diagrams"]["full"], result["diagrams"][method]
    norms = np.array(result.get("norms", []))
    return {
        "id": method,
        "name": NAMES[method],
        "colour": to_hex(COLOURS[NAMES[method]]),
        "kept": kept,
        "diagrams": _drawn(own),
        "distances": {dimension: _share(full[dimension], own[dimension]) for dimension in full},
        "norm": _rounded(100 * norms[kept].sum() / norms.sum()) if norms.any() else None,
    }


def _share(full: list, own: list) -> float | None:
    total = sum(death - birth for birth, death in full)
    return _rounded(diagram_distance(full, own) / total) if total else None


def _drawn(diagrams: dict[str, list]) -> dict[str, list]:
    return {dimension: [_all_rounded(pair) for pair in pairs] for dimension, pairs in diagrams.items()}


def _network(dense: Dense) -> str:
    share = "" if dense.width == 1 else f" at {dense.width:g} of its width"
    return f"{dense.architecture.upper().replace('VGG', 'VGG-')}{share} on {dense.dataset}"


def _all_rounded(values: Iterable[float]) -> list[float | None]:
    return [_rounded(value) for value in values]


def _rounded(value: float) -> float | None:
    """A number to `DIGITS` digits; JSON has no NaN."""
    return None if np.isnan(value) else float(f"{value:.{DIGITS}g}")
