"""Measures the topological fitness on the present machine: `python -m topoprune.measure.fitness`.

One run prints the reference (giotto-tda) beside each fast path and writes the same as JSON.
Every section is a function from settings to rows (dicts of what is printed), so that another
subject becomes another section.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from topoprune import fitness, genetic, persistence, reference
from topoprune.fitness import Fitness, distance_matrix
from topoprune.measure import machine
from topoprune.measure.machine import Rows

OUTPUT = Path("_build/bench/fitness.json")
HOMOLOGY = {(0,): "H0", (0, 1): "H0 + H1"}
PACKAGES = ["giotto-tda", "giotto-ph", "numba", "numpy", "deap", "torch"]


def main() -> None:
    """Run all sections, print their tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m topoprune.measure.fitness", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--epochs", type=int, default=3, help="of training the filters (default 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON (default {OUTPUT})")
    options = parser.parse_args()
    layers = trained_filters(width=0.125 if options.quick else 1.0, epochs=options.epochs)
    found = {"machine": machine.machine(PACKAGES), "filters": describe(layers, options.epochs)}
    machine.run(SECTIONS, (layers, options.quick), found, options.output)


def trained_filters(width: float, epochs: int) -> list[np.ndarray]:
    """Flattened filters (n, d) of all convolutions of a VGG-16 trained on the embedded digits."""
    import torch

    from topoprune import models, training
    from topoprune.study import datasets

    torch.manual_seed(0)
    model = models.build("vgg16", width=width)
    recipe = training.Recipe(epochs=epochs, batch=128, peak_rate=0.1)
    training.train(model, datasets.load("digits"), recipe)
    convolutions = [x for x in model.modules() if isinstance(x, torch.nn.Conv2d)]
    return [x.weight.detach().flatten(1).numpy() for x in convolutions]


def describe(layers: list[np.ndarray], epochs: int) -> dict[str, Any]:
    """What was measured on."""
    return {
        "network": "VGG-16 with BatchNorm, trained on scikit-learn's digits",
        "epochs": epochs,
        "filters": [len(x) for x in layers],
    }


def evaluations(layers: list[np.ndarray], quick: bool) -> Rows:
    """One evaluation: half of the filters of the last layer, a population of 64."""
    points = layers[-1]
    delta, population = distance_matrix(points), _population(len(points), len(points) // 2, 64)
    rows = []
    for dimensions, name in HOMOLOGY.items():
        few = population[: 4 if quick else 12]
        slow = Fitness(delta, dimensions, engine="reference")
        slow(few[:1])  # imports
        usual = reference.PARAMETERS["wasserstein"]["delta"]
        reference.PARAMETERS["wasserstein"]["delta"] = 0.01  # giotto-tda's default
        loose = _measured(lambda: slow(few), len(few), 1)  # noqa: B023
        reference.PARAMETERS["wasserstein"]["delta"] = usual
        tight = _measured(lambda: slow(few), len(few), 1)  # noqa: B023
        fast = Fitness(delta, dimensions)
        found = {
            "giotto-tda, error 1e-2 (its default)": loose,
            "giotto-tda, error 1e-6": tight,
            "fast": _measured(lambda: fast(population), len(population), 5),  # noqa: B023
        }
        if dimensions == (0,):
            batched = Fitness(delta, dimensions, device="cpu")
            found["fast, trees by torch on the CPU"] = _measured(
                lambda: batched(population),  # noqa: B023
                len(population),
                3,
            )
        exact = found["fast"]["values"][: len(few)]
        for way, row in found.items():
            values = row.pop("values")[: len(few)]
            rows.append(
                {
                    "fitness": name,
                    "way": way,
                    **row,
                    "times giotto-tda": loose["ms"] / row["ms"],
                    "largest relative difference": float(np.abs(values / exact - 1).max()),
                }
            )
    return rows


def engines(layers: list[np.ndarray], quick: bool) -> Rows:
    """Persistence in dimension 1 and its Wasserstein distance: the ways that were tried."""
    from gph import ripser_parallel
    from scipy.optimize import linear_sum_assignment

    points = layers[-1]
    delta, kept = distance_matrix(points), _population(len(points), len(points) // 2, 1)[0]
    part, edges = delta[np.ix_(kept, kept)], persistence.sorted_edges(delta)
    a, b = (fitness.diagrams(x)[1] for x in (delta, part))

    def assignment():
        sides = np.ptp(a, axis=1)[:, None] / 2 + np.ptp(b, axis=1) / 2
        gain = (sides - fitness._costs(a, b)).clip(0)
        return gain[linear_sum_assignment(gain, maximize=True)].sum()

    def giotto_ph(**options):
        return ripser_parallel(part, metric="precomputed", maxdim=1, **options)

    ways = {
        "bars: giotto-ph": giotto_ph,
        "bars: giotto-ph, two threads": lambda: giotto_ph(n_threads=2),
        "bars: giotto-ph, edges collapsed": lambda: giotto_ph(collapse_edges=True),
        "bars: sparse cocycles (ours)": lambda: persistence.rips_bars(*edges, kept, len(delta)),
        "distance: giotto-tda (hera), error 1e-2": lambda: _hera(a, b, 1e-2),
        "distance: giotto-tda (hera), error 1e-6": lambda: _hera(a, b, 1e-6),
        "distance: SciPy assignment": assignment,
        "distance: shortest augmenting paths (ours)": lambda: persistence.plane_distance(a, b),
    }
    sizes = {"full diagram": len(a), "subset's diagram": len(b)}
    return [{"way": way, "ms": _measured(call, 1, 3)["ms"], **sizes} for way, call in ways.items()]


def _hera(a: np.ndarray, b: np.ndarray, error: float) -> float:
    from gtda.diagrams import PairwiseDistance

    pair = reference._triples(a, b)
    hera = PairwiseDistance("wasserstein", metric_params={"p": 1, "delta": error}, order=None)
    return hera.fit(pair[:1]).transform(pair[1:])[0, 0, 0]


def growth(layers: list[np.ndarray], quick: bool) -> Rows:
    """How time and memory grow with n, k and the population (normal points, 64 coordinates)."""
    largest, sizes = (256, [64, 128, 256]) if quick else (2048, [128, 256, 512, 1024, 2048])
    middle = sizes[len(sizes) // 2]
    cases = [("n", n, n // 2, 64) for n in sizes]
    cases += [("k", middle, k, 64) for k in np.linspace(middle / 8, middle, 8, dtype=int).tolist()]
    cases += [("population", middle, middle // 2, p) for p in (1, 4, 16, 64, 256, 512)]
    rows = []
    for dimensions, name in HOMOLOGY.items():
        for varied, n, k, p in cases:
            size = p if dimensions == (0,) or n <= middle else 8  # one in eight is enough
            rows.append(_case(dimensions, name, varied, n, k, min(p, size)))
    rows.append(_case((0,), "H0", "memory", largest, largest // 2, 512))
    rows.append(_case((0, 1), "H0 + H1", "memory", largest, largest // 2, 16))
    return rows


def _case(dimensions: tuple[int, ...], name: str, varied: str, n: int, k: int, p: int):
    fitness = Fitness(distance_matrix(_cloud(n)), dimensions)
    row = _measured(lambda: fitness(_population(n, k, p)), p, 1 if n > 1000 else 3)
    del row["values"]
    return {"varied": varied, "fitness": name, "n": n, "k": k, "population": p, **row}


def network(layers: list[np.ndarray], quick: bool) -> Rows:
    """The genetic search on every layer: ratio 0.5, population 64, 60 generations."""
    search = genetic.Search(population=8, generations=4) if quick else genetic.Search()
    rows = []
    for dimensions, name in HOMOLOGY.items():
        for index, points in enumerate(layers):
            rows.append({"fitness": name, "layer": index, **_search(points, dimensions, search)})
        mine = [row for row in rows if row["fitness"] == name]
        total = {"fitness": name, "layer": "all", "n": sum(row["n"] for row in mine)}
        for field in ("evaluations", "seconds"):
            total[field] = sum(row[field] for row in mine)
        rows.append(total)
    return rows


def wide(layers: list[np.ndarray], quick: bool) -> Rows:
    """A layer of 4,096 neurons (normal points, 512 inputs), half of them kept."""
    n = 256 if quick else 4096
    points = np.random.default_rng(0).normal(size=(n, 512))
    rows = [{"fitness": "H0", "what": "whole search", **_search(points, (0,), genetic.Search())}]
    fitness = Fitness(distance_matrix(points), (0, 1))
    row = _measured(lambda: fitness(_population(n, n // 2, 2)), 2, 1)
    what = {"fitness": "H0 + H1", "what": "two evaluations", "n": n, "evaluations": 2}
    rows.append({**what, "seconds": 2 * row["ms"] / 1e3})
    return rows


def _search(points: np.ndarray, dimensions: tuple[int, ...], search: genetic.Search):
    started = time.perf_counter()
    fitness = Fitness(distance_matrix(points), dimensions)
    result = genetic.evolve(len(points), len(points) // 2, fitness, search)
    return {
        "n": len(points),
        "first best": result.history[0]["best"],
        "best": result.fitness,
        "evaluations": result.history[-1]["evaluations"],
        "seconds": time.perf_counter() - started,
    }


SECTIONS: dict[str, Callable[[list[np.ndarray], bool], Rows]] = {
    "evaluations": evaluations,
    "engines": engines,
    "growth": growth,
    "network": network,
    "wide": wide,
}


def _cloud(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 64))


def _population(n: int, k: int, p: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([rng.permutation(n)[:k] for _ in range(p)])


def _measured(call: Callable[[], Any], size: int, repeats: int) -> dict[str, Any]:
    """Values of a call, the median time of an evaluation, and the memory that the call added."""
    if repeats > 1:
        call()  # compiles
    before = machine.memory("VmRSS", reset=True)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        values = call()
        seconds.append(time.perf_counter() - started)
    milliseconds = 1e3 * statistics.median(seconds) / size
    peak = None if before is None else (machine.memory("VmHWM") - before) / 1024
    return {
        "ms": milliseconds,
        "evaluations/s": 1e3 / milliseconds,
        "peak MiB": peak,
        "values": values,
    }


if __name__ == "__main__":
    main()
