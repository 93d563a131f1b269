"""Measure the topological fitness on this machine: `python -m topoprune.measure.fitness`.

Each section is a function that returns the rows of one table. The reference, giotto-tda, stands beside the fast
implementation where both can run.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from topoprune import fitness, models, persistence, reference
from topoprune.fitness import Fitness, distance_matrix
from topoprune.genetic import Search, evolve
from topoprune.measure.machine import Row, describe_machine, peak_memory, resident_memory, run_sections
from topoprune.study import datasets
from topoprune.training import Recipe, train

OUTPUT = Path("_build/bench/fitness.json")
PACKAGES = ["giotto-tda", "giotto-ph", "numba", "numpy", "deap", "torch"]
HOMOLOGY = {(0,): "H0", (0, 1): "H0 + H1"}

Filters = list[np.ndarray]
"""The filters of each layer as points (n, d)."""


def main(arguments: list[str] | None = None) -> None:
    """Run every section, print its table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m topoprune.measure.fitness", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that train the filters (default 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"JSON file (default {OUTPUT})")
    options = parser.parse_args(arguments)
    layers = trained_filters(width=0.125 if options.quick else 1.0, epochs=options.epochs)
    heading = {"machine": describe_machine(PACKAGES), "filters": describe_filters(layers, options.epochs)}
    run_sections(SECTIONS, (layers, options.quick), heading, options.output)


def trained_filters(width: float, epochs: int) -> Filters:
    """Train VGG-16 on scikit-learn's digits, and flatten the filters of its convolutions."""
    torch.manual_seed(0)
    model = models.build("vgg16", width=width)
    recipe = Recipe(epochs=epochs, batch=128, peak_rate=0.1)
    train(model, datasets.load("digits").train.augmented(recipe), recipe, fast=True)
    convolutions = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    return [layer.weight.detach().flatten(1).numpy() for layer in convolutions]


def describe_filters(layers: Filters, epochs: int) -> Row:
    """Where the filters come from, and how many each layer has."""
    return {
        "network": "VGG-16 with BatchNorm, trained on scikit-learn's digits",
        "epochs": epochs,
        "filters": [len(points) for points in layers],
    }


def evaluations(layers: Filters, quick: bool) -> list[Row]:
    """One evaluation: half of the filters of the last layer, a population of 64."""
    points = layers[-1]
    distances, population = distance_matrix(points), random_subsets(len(points), len(points) // 2, 64)
    few = population[: 4 if quick else 12]
    return [row for dimensions in HOMOLOGY for row in _against_reference(distances, population, few, dimensions)]


def _against_reference(
    distances: np.ndarray, population: np.ndarray, few: np.ndarray, dimensions: tuple[int, ...]
) -> list[Row]:
    slow, fast = Fitness(distances, dimensions, engine="reference"), Fitness(distances, dimensions)
    slow(few[:1])  # imports giotto-tda
    with _reference_error(0.01):  # giotto-tda's default
        loose = timed(lambda: slow(few), len(few), 1)
    tight = timed(lambda: slow(few), len(few), 1)
    exact = timed(lambda: fast(population), len(population), 5)
    values = exact.values[: len(few)]
    return [
        {
            "fitness": HOMOLOGY[dimensions],
            "way": way,
            **timing.row(),
            "times giotto-tda": loose.milliseconds / timing.milliseconds,
            "largest relative difference": float(np.abs(timing.values[: len(few)] / values - 1).max()),
        }
        for way, timing in {
            "giotto-tda, error 1e-2 (its default)": loose,
            "giotto-tda, error 1e-6": tight,
            "fast": exact,
        }.items()
    ]


@contextmanager
def _reference_error(error: float) -> Iterator[None]:
    """Let giotto-tda stop at this relative error of a Wasserstein distance."""
    settings: Any = reference.PARAMETERS["wasserstein"]
    before = settings["delta"]
    settings["delta"] = error
    try:
        yield
    finally:
        settings["delta"] = before


def engines(layers: Filters, quick: bool) -> list[Row]:
    """Persistence in dimension 1 and its Wasserstein distance: the ways that were tried."""
    from gph import ripser_parallel

    points = layers[-1]
    distances, kept = distance_matrix(points), random_subsets(len(points), len(points) // 2, 1)[0]
    part, edges = distances[np.ix_(kept, kept)], persistence.sorted_edges(distances)
    whole_bars, part_bars = (fitness.diagrams(x)[1] for x in (distances, part))

    def giotto_ph(**options: Any) -> Any:
        return ripser_parallel(part, metric="precomputed", maxdim=1, **options)

    def hera(error: float) -> float:
        with _reference_error(error):
            return reference.distance(whole_bars, part_bars, "wasserstein")

    ways: dict[str, Callable[[], Any]] = {
        "bars: giotto-ph": giotto_ph,
        "bars: giotto-ph, two threads": lambda: giotto_ph(n_threads=2),
        "bars: giotto-ph, edges collapsed": lambda: giotto_ph(collapse_edges=True),
        "bars: sparse cocycles (ours)": lambda: persistence.rips_bars(*edges, kept, len(distances)),
        "distance: giotto-tda (hera), error 1e-2": lambda: hera(1e-2),
        "distance: giotto-tda (hera), error 1e-6": lambda: hera(1e-6),
        "distance: SciPy assignment": lambda: assignment_distance(whole_bars, part_bars),
        "distance: shortest augmenting paths (ours)": lambda: persistence.wasserstein_distance(whole_bars, part_bars),
    }
    sizes = {"full diagram": len(whole_bars), "subset's diagram": len(part_bars)}
    return [{"way": way, "ms": timed(call, 1, 3).milliseconds, **sizes} for way, call in ways.items()]


def assignment_distance(first: np.ndarray, second: np.ndarray) -> float:
    """1-Wasserstein distance of two diagrams by SciPy's assignment.

    Match the points whose pairing saves most against sending both to the diagonal.

    >>> assignment_distance(np.array([[0.0, 1.0]]), np.array([[0.0, 0.5]]))
    0.5
    """
    to_diagonal = np.ptp(first, axis=1)[:, None] / 2 + np.ptp(second, axis=1) / 2
    saving = (to_diagonal - cdist(first, second, "chebyshev")).clip(0)
    saved = saving[linear_sum_assignment(saving, maximize=True)].sum()
    return float(np.ptp(first, axis=1).sum() / 2 + np.ptp(second, axis=1).sum() / 2 - saved)


def growth(layers: Filters, quick: bool) -> list[Row]:
    """How time and memory grow with n, k and the population (normal points, 64 coordinates)."""
    largest, sizes = (256, [64, 128, 256]) if quick else (2048, [128, 256, 512, 1024, 2048])
    middle = sizes[len(sizes) // 2]
    cases = [("n", n, n // 2, 64) for n in sizes]
    cases += [("k", middle, k, 64) for k in np.linspace(middle / 8, middle, 8, dtype=int).tolist()]
    cases += [("population", middle, middle // 2, size) for size in (1, 4, 16, 64, 256, 512)]
    rows = []
    for dimensions in HOMOLOGY:
        for varied, n, k, size in cases:
            slow = 1 in dimensions and n > middle  # eight subsets are enough
            rows.append(_case(dimensions, varied, n, k, min(size, 8) if slow else size))
    rows.append(_case((0,), "memory", largest, largest // 2, 512))
    rows.append(_case((0, 1), "memory", largest, largest // 2, 16))
    return rows


def _case(dimensions: tuple[int, ...], varied: str, n: int, k: int, population: int) -> Row:
    evaluate = Fitness(distance_matrix(normal_points(n, 64)), dimensions)
    timing = timed(lambda: evaluate(random_subsets(n, k, population)), population, 1 if n > 1000 else 3)
    return {"varied": varied, "fitness": HOMOLOGY[dimensions], "n": n, "k": k, "population": population, **timing.row()}


def network(layers: Filters, quick: bool) -> list[Row]:
    """The genetic search on every layer: ratio 0.5, population 64, 60 generations."""
    budget = Search(population=8, generations=4) if quick else Search()
    rows = []
    for dimensions, name in HOMOLOGY.items():
        by_layer = [
            {"fitness": name, "layer": index, **_search(points, dimensions, budget)}
            for index, points in enumerate(layers)
        ]
        total = {field: sum(row[field] for row in by_layer) for field in ("n", "evaluations", "seconds")}
        rows += [*by_layer, {"fitness": name, "layer": "all", **total}]
    return rows


def wide(layers: Filters, quick: bool) -> list[Row]:
    """A layer of 4,096 neurons (normal points, 512 inputs), half of them kept."""
    n = 256 if quick else 4096
    points = normal_points(n, 512)
    evaluate = Fitness(distance_matrix(points), (0, 1))
    two = timed(lambda: evaluate(random_subsets(n, n // 2, 2)), 1, 1)
    return [
        {"fitness": "H0", "what": "whole search", **_search(points, (0,), Search())},
        {
            "fitness": "H0 + H1",
            "what": "two evaluations",
            "n": n,
            "evaluations": 2,
            "seconds": two.milliseconds / 1e3,
        },
    ]


def _search(points: np.ndarray, dimensions: tuple[int, ...], budget: Search) -> Row:
    started = time.perf_counter()
    result = evolve(len(points), len(points) // 2, Fitness(distance_matrix(points), dimensions), budget)
    return {
        "n": len(points),
        "first best": result.history[0]["best"],
        "best": result.fitness,
        "evaluations": result.history[-1]["evaluations"],
        "seconds": time.perf_counter() - started,
    }


SECTIONS: dict[str, Callable[[Filters, bool], list[Row]]] = {
    "evaluations": evaluations,
    "engines": engines,
    "growth": growth,
    "network": network,
    "wide": wide,
}


def normal_points(n: int, coordinates: int) -> np.ndarray:
    """Standard normal points (n, coordinates), the same in every run."""
    return np.random.default_rng(0).normal(size=(n, coordinates))


def random_subsets(n: int, k: int, count: int) -> np.ndarray:
    """Indices (count, k) of random subsets of n points, the same in every run."""
    generator = np.random.default_rng(1)
    return np.array([generator.permutation(n)[:k] for _ in range(count)])


class Timing(NamedTuple):
    """How long a call took for each evaluation in it, the memory that it added, and what it returned."""

    milliseconds: float
    peak_mebibytes: float | None
    values: Any

    def row(self) -> Row:
        """Time and memory as columns."""
        return {
            "ms": self.milliseconds,
            "evaluations/s": 1e3 / self.milliseconds,
            "peak MiB": self.peak_mebibytes,
        }


def timed(call: Callable[[], Any], evaluations: int, repeats: int) -> Timing:
    """Time `call`, which does so many evaluations; the median of the repeats."""
    if repeats > 1:
        call()  # compiles
    before = resident_memory()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        values = call()
        seconds.append(time.perf_counter() - started)
    peak = peak_memory()
    added = None if before is None or peak is None else (peak - before) / 1024
    return Timing(1e3 * statistics.median(seconds) / evaluations, added, values)


if __name__ == "__main__":
    main()
