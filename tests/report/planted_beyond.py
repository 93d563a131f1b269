"""Synthetic records beyond the thesis in which effects are planted."""

import dataclasses

import numpy as np
from planted import LAYERS, PROVENANCE, dense_spec, networks, record

from topoprune import study
from topoprune.study import Clouds, Record, Removal
from topoprune.study.profiles import CHOICES, COMPENSATED, FUNCTIONAL_CHOICE, PROFILES

RATIOS = (0.3, 0.5)
PLAIN = ("random", "l1", "l2", "fpgm", "topological", FUNCTIONAL_CHOICE, "qr")
MENDED = ("random", "fpgm", FUNCTIONAL_CHOICE, "qr")
PLAN = dataclasses.replace(
    PROFILES["beyond-quarter"],
    methods=(*PLAIN, *(name + COMPENSATED for name in MENDED)),
    ratios=RATIOS,
    removal_ratios=RATIOS,
)


def removal(
    name: str, ratio: float, seed: int, none: float, gain: float, cost: float, distance: float, draw: int = 0
) -> Record:
    """A removal that leaves `none` percent, `gain` points more refitted, half of them by channels."""
    method, options = study.VARIANTS[name]
    accuracies = {"none": none, "channels": none + gain / 2, "convolution": none + gain}
    losses = {"radius": cost**0.5, "cost": cost, "norm": 0.1 * distance, "rank": distance**2, "weights": distance}
    result = {
        "accuracy": {mode: {"validation": a / 100, "test": a / 100, "seconds": 2.0} for mode, a in accuracies.items()},
        "layers": {layer: dict(losses) for layer in LAYERS},
        "selection_seconds": 0.5,
    }
    return Record(Removal(dense_spec(seed), method, ratio, draw, options), result, PROVENANCE)


def trial(name: str, ratio: float, seed: int, test: float, distance: float, epochs: int = 5) -> Record:
    """A trial of `planted.record`, compensated if its name says so."""
    made = record(name.removesuffix(COMPENSATED), ratio, seed, test, 30.0, distance, epochs)
    if not name.endswith(COMPENSATED):
        return made
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, compensation="convolution"))


def clouds(seed: int) -> Record:
    """Two layers whose distances spread by 0.4 of their median in weight space, and by 0.8 in the functional space."""
    spread = {"weights": 0.2, "functional": 0.4}
    layers: dict = {
        layer: {
            space: {"distances": [1 - 2 * s, 1 - s, 1 - s / 2, 1, 1 + s / 2, 1 + s, 1 + 2 * s], "radius": 0.9}
            for space, s in spread.items()
        }
        for layer in LAYERS
    }
    bars = {"weights": [0.9, 1.0, 0.8], "functional": [0.5, 0.7, 0.6]}
    for space, deaths in bars.items():
        layers["features.3"][space] |= {"h0": deaths, "h1": [], "merges": [0.1, 0.3, 0.6]}
    result = {"quantiles": [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99], "layers": layers}
    return Record(Clouds(dense_spec(seed), "features.3", 0.5), result, PROVENANCE)


def beyond(
    seeds: int,
    gain: float = 30.0,
    lead: float = 2.0,
    over_qr: float = 0.0,
    before: float = 0.0,
    saved: int = 2,
    link: float = 0.0,
    by: str = "cost",
    noise: float = 0.05,
) -> list[Record]:
    """Dense networks, their clouds, removals and trials, all choices alike but for what is planted.

    Args:
        gain: points that refitting gains.
        lead: points of the functional choice and of QR over the others after fine-tuning.
        over_qr, before: points of the functional choice over QR after fine-tuning, and over QR and OBS before it.
        saved: epochs that compensated networks recover sooner.
        link: points of accuracy that one unit of the loss `by` ("cost" or "distance") takes.
        noise: standard deviation of accuracies, in points.
    """
    random = np.random.default_rng(3)
    records = networks(seeds)
    for seed in range(seeds):
        records.append(clouds(seed))
        for ratio in RATIOS:
            drawn = {name: {"cost": random.uniform(0.1, 0.9), "distance": random.uniform(0.1, 0.9)} for name in CHOICES}
            for name, losses in drawn.items():
                above = before * (name == FUNCTIONAL_CHOICE)
                left = 60 - 40 * ratio + above - link * losses[by] + noise * random.normal()
                gained = gain + noise * random.normal()
                records.append(removal(name, ratio, seed, left, gained, losses["cost"], losses["distance"]))
            for name in (*PLAIN, *(name + COMPENSATED for name in MENDED)):
                choice = name.removesuffix(COMPENSATED)
                losses = drawn[choice]
                above = lead * (choice in (FUNCTIONAL_CHOICE, "qr")) + over_qr * (choice == FUNCTIONAL_CHOICE)
                test = 88 - 10 * ratio + above - link * losses[by] + noise * random.normal()
                epochs = 3 - saved * name.endswith(COMPENSATED) + seed % 2 * (choice == "random")
                records.append(trial(name, ratio, seed, test, losses["distance"], epochs))
    return records
