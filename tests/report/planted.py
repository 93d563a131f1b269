"""Synthetic records in which an effect is planted, small and made at once."""

import numpy as np

from topoprune import study
from topoprune.study import Dense, Portrait, Record, Trial
from topoprune.training import Recipe

RECIPE = Recipe(epochs=5)
METHODS = ("random", "l1", "l2", "fpgm", "topological", "magnitude", "taylor")
RATIOS = (0.5, 0.8, 0.9)
LAYERS = ("features.10", "features.3")  # sorted as JSON sorts them, not as in the network
COST = {"parameters": 1.0, "flops": 1.0, "latency_ms": 1.0, "images_per_second": 1.0}
PROVENANCE = {
    "seconds": 60.0,
    "date": "2026-01-01",
    "device": "cpu",
    "commit": "0123456789ab",
    "python": "3.11.7",
    "versions": {"torch": "2.9.0"},
}


def dense_spec(seed: int, dataset: str = "cifar10") -> Dense:
    return Dense(dataset, "vgg16", 1.0, seed, RECIPE)


def networks(seeds: int, dataset: str = "cifar10") -> list[Record]:
    """Dense networks of 90 % accuracy."""
    result = {"cost": COST, "history": [epoch(1, 80.0), epoch(2, 90.0)], "validation": 0.9, "test": 0.9}
    return [Record(dense_spec(seed, dataset), dict(result), PROVENANCE) for seed in range(seeds)]


def record(
    name: str, ratio: float, seed: int, test: float, damage: float, distance: float, epochs: int = 5, live: float = 1.0
) -> Record:
    """A trial that ends at `test` percent, after a damage in points, and recovers in `epochs`, 5 being never."""
    method, options = study.VARIANTS[name]
    searched = {
        "generation": [0, 1],
        "best": [2 * distance, distance],
        "evaluations": [2, 4],
        "seconds": [0.5, 0.5],
    }
    result = {
        "cost": COST,
        "damage": {
            "validation": 0.9 - damage / 100,
            "test": 0.9 - damage / 100,
            "topological": {layer: {"0": distance, "1": 0.0} for layer in LAYERS},
            "plain": {layer: {"norm": 0.1 * distance, "rank": distance**2} for layer in LAYERS},
        },
        "history": [epoch(i + 1, test) for i in range(5)],
        "live": [live, 1.0],
        "searches": {layer: dict(searched) for layer in LAYERS} if method == "topological" else {},
        "recovery": {
            "goal": 0.895,
            "reached": epochs < 5,
            "epochs": epochs,
            "seconds": 1.0 * epochs,
            "area": test / 100 - 0.05,
        },
        "selection_seconds": 1.0,
        "kept": {"features.10": [0, 1, 2, 3], "features.3": [0, 1]},
    }
    return Record(Trial(dense_spec(seed), method, ratio, seed, RECIPE, options), result, PROVENANCE)


def epoch(number: int, accuracy: float) -> dict:
    return {"epoch": number, "seconds": 1.0, "loss": 0.0, "validation": accuracy / 100, "test": accuracy / 100}


def planted(
    seeds: int,
    advantage: float = 0.0,
    hurt: float = 0.0,
    slow: int = 0,
    link: float = 0.0,
    noise: float = 0.05,
    lasts: bool = False,
    rival: str = "",
) -> list[Record]:
    """Dense networks and their trials, all methods alike but for what is planted.

    Args:
        advantage, hurt, slow: points of accuracy, points of damage and epochs of recovery of the topological method
            over the others.
        link: points of damage for one unit of the topological distance.
        noise: standard deviation of accuracy and damage, in points.
        lasts: whether the area under the recovery curve is linked as well.
        rival: a simpler measure ("norm" or "rank") that equals what the distance only follows.
    """
    random = np.random.default_rng(1)
    records = networks(seeds)
    for seed in range(seeds):
        for ratio in RATIOS:
            for name in METHODS:
                mine = name == "topological"
                distance = random.uniform(0.1, 0.9)
                test = 90 - 10 * ratio + advantage * mine + noise * random.normal()
                damage = 20 * ratio + hurt * mine + link * distance + noise * random.normal()
                trial = record(name, ratio, seed, test, damage, distance, epochs=2 + slow * mine)
                plain = {"norm": random.uniform(), "rank": random.uniform()}
                followed = distance
                if rival:
                    plain[rival] = distance
                    followed += 0.3 * random.normal()
                for layer in LAYERS:
                    trial.result["damage"]["plain"][layer] = plain
                    trial.result["damage"]["topological"][layer] = {"0": followed, "1": 0.0}
                if lasts:
                    trial.result["recovery"]["area"] -= link * distance / 100
                records.append(trial)
    return records


def only_trials(records: list[Record]) -> list[Record]:
    return [record for record in records if isinstance(record.spec, Trial)]


def without(records: list[Record], **fields) -> list[Record]:
    """All records but the trials whose specs have all these fields."""
    return [
        record
        for record in records
        if not (
            isinstance(record.spec, Trial)
            and all(getattr(record.spec, name) == value for name, value in fields.items())
        )
    ]


def portrait() -> Record:
    """Three filters of a layer, of which L1 keeps two and the topological method two others."""
    diagrams = {
        "full": {"0": [[0.0, 1.0], [0.0, 3.0]], "1": [[1.0, 2.0]]},
        "l1": {"0": [[0.0, 3.0]], "1": []},
        "topological": {"0": [[0.0, 1.0]], "1": []},
    }
    result = {
        "plane": [[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]],
        "kept": {"l1": [0, 2], "topological": [0, 1]},
        "diagrams": diagrams,
    }
    return Record(Portrait(dense_spec(0), "features.3", 0.5, ("l1", "topological")), result, PROVENANCE)
