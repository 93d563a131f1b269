"""Searches for the subset of k of n points with the lowest fitness; the genetic one is built on DEAP.

Each calls a batched fitness: a population (p, k) of indices -> (p,) values. All take the arguments of `evolve` and keep
to one budget.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from deap import base, creator, tools
from jaxtyping import Float, Int

from topoprune import files

BatchedFitness = Callable[[np.ndarray], np.ndarray]  # (p, k) indices -> (p,), lower is better

creator.create("TopopruneFitness", base.Fitness, weights=(-1.0,))
creator.create("TopopruneSubset", np.ndarray, fitness=creator.TopopruneFitness)


def check_number(name: str, value: Any, least: int, most: int | None = None, kind: Any = Integral) -> None:
    """Reject what is not a number of this kind in [least, most]; there is no upper bound if `most` is None."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {'an integer' if kind is Integral else 'a number'}, got {value!r}")
    if value < least or (most is not None and value > most) or value != value:  # NaN
        rule = f"be at least {least}" if most is None else f"lie in [{least}, {most}]"
        raise ValueError(f"{name} must {rule}, got {value}")


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        population: individuals in a generation.
        generations: number of generations after the random first one.
        elites: best individuals that survive; None: a quarter, at least one.
        crossover: probability that a child has two parents, in [0, 1].
        mutation: mean share of a child's kept points that are swapped, in [0, 1].
        tournament: individuals that compete to be a parent.
        patience: generations without a better best before the search stops; None: never.

    Raises:
        ValueError: a setting of the wrong type or outside its range.

    >>> Search(population=10, generations=4).budget
    50
    """

    population: int = 64
    generations: int = 60
    elites: int | None = None
    crossover: float = 0.9
    mutation: float = 0.02
    tournament: int = 3
    patience: int | None = None

    def __post_init__(self):
        for name, least in (("population", 1), ("generations", 0), ("tournament", 1)):
            check_number(name, getattr(self, name), least)
        check_number("crossover", self.crossover, 0, 1, Real)
        check_number("mutation", self.mutation, 0, 1, Real)
        check_number("elites", 1 if self.elites is None else self.elites, 1, self.population)
        check_number("patience", 1 if self.patience is None else self.patience, 1)

    @property
    def budget(self) -> int:
        """Evaluations that the search may ask for: population * (generations + 1)."""
        return self.population * (self.generations + 1)


@dataclass(frozen=True)
class Result:
    """Outcome of a search.

    Attributes:
        kept: (k,) sorted indices.
        fitness: of `kept`.
        history: one row a generation: generation, best (so far), evaluations (so far, without repeated individuals)
            and seconds (of that generation).
    """

    kept: Int[np.ndarray, " k"]
    fitness: float
    history: list[dict[str, Any]]


def evolve(
    n: int,
    k: int,
    fitness: BatchedFitness,
    search: Search = Search(),
    seed: int = 0,
    checkpoint: Path | None = None,
    delta: Float[np.ndarray, "m m"] | None = None,
) -> Result:
    """Genetic algorithm over the k-subsets of 0 .. n - 1.

    Each generation keeps the elites and adds children of tournament winners. A child keeps the points that both parents
    keep and draws the rest from those that one keeps; then some kept points are swapped for removed ones. A generation
    is one call of `fitness`, without the individuals that were seen before. Same arguments, same result.

    Args:
        n, k: number of points, and how many to keep.
        fitness: (p, k) sorted indices -> (p,) finite values, lower is better.
        search: settings.
        seed: of all random draws.
        checkpoint: file written at the end of every generation. If it exists and belongs to this search, the search
            goes on from there and ends as if it had never stopped.
        delta: distances of the points; only `farthest_point` uses them.

    Raises:
        ValueError: k outside 1 .. n, or a fitness that is not finite.

    >>> result = evolve(8, 2, lambda population: population.sum(axis=1), Search(generations=10))
    >>> result.kept, result.fitness
    (array([0, 1]), 1.0)
    """
    rng = np.random.default_rng(seed)
    run = _Evaluations(n, k, fitness, search)
    toolbox = operators(n, k, search, rng)
    population: list = []
    if checkpoint:
        first = _values(fitness, [_subset(range(k))])[0]  # tells one fitness from another
        identity = {"n": n, "k": k, "seed": seed, **asdict(search), "fitness of the first points": f"{first:.6g}"}
        state = files.resume(files.read_json, checkpoint, identity)
        if state:
            population = [_subset(kept) for kept in state["population"]]
            run.values, run.history = state["values"], state["history"]
            rng.bit_generator.state = state["generator"]
            run.evaluate(population)
    while run.continues():
        if population:
            elites = tools.selBest(population, search.elites or max(1, search.population // 4))
            children = [toolbox.child(population) for _ in range(search.population - len(elites))]
            population = elites + children
        else:
            population = [toolbox.individual() for _ in range(search.population)]
        run.generation(population)
        if checkpoint:
            state = {"population": [kept.tolist() for kept in population], "generator": rng.bit_generator.state}
            files.write_json(checkpoint, identity, {**state, "values": run.values, "history": run.history})
    return run.result()


def operators(n: int, k: int, search: Search, rng: np.random.Generator) -> base.Toolbox:
    """Operators on subsets that draw from `rng`: DEAP's own draw from the global `random`."""

    def individual():
        return _subset(rng.permutation(n)[:k])

    def select(population):
        rivals = rng.integers(len(population), size=search.tournament)
        return tools.selBest([population[i] for i in rivals], 1)[0]

    def mate(mother, father):
        votes = rng.random(n)
        votes[mother] += 1
        votes[father] += 1
        return np.argpartition(votes, n - k)[n - k :] if k < n else mother

    def mutate(kept):
        swaps = min(rng.binomial(k, search.mutation), n - k)
        if not swaps:
            return kept
        removed = np.delete(np.arange(n), kept)
        return np.concatenate([rng.permutation(kept)[swaps:], rng.permutation(removed)[:swaps]])

    def child(population):
        kept = select(population)
        if rng.random() < search.crossover:
            kept = mate(kept, select(population))
        return _subset(mutate(kept))

    toolbox = base.Toolbox()
    for operator in (individual, select, mate, mutate, child):
        toolbox.register(operator.__name__, operator)
    return toolbox


def _subset(kept):
    return creator.TopopruneSubset(np.sort(np.asarray(kept, np.int64)))


def random_search(
    n: int, k: int, fitness: BatchedFitness, search: Search = Search(), seed: int = 0, checkpoint=None, delta=None
) -> Result:
    """Best of `search.budget` random subsets; arguments of `evolve`, saves no checkpoint.

    >>> random_search(8, 2, lambda population: population.sum(axis=1)).kept
    array([0, 1])
    """
    run = _Evaluations(n, k, fitness, search)
    toolbox = operators(n, k, search, np.random.default_rng(seed))
    while run.continues():
        run.generation([toolbox.individual() for _ in range(search.population)])
    return run.result()


def greedy(
    n: int, k: int, fitness: BatchedFitness, search: Search = Search(), seed: int = 0, checkpoint=None, delta=None
) -> Result:
    """Remove one point at a time, the one whose loss costs least; arguments of `evolve`.

    The n - k removals share the budget evenly: each tries as many points as its share allows, at least one, drawn at
    random if these are not all. One row of history a removal. Saves no checkpoint.

    >>> greedy(8, 2, lambda population: population.sum(axis=1)).kept
    array([0, 1])
    """
    run = _Evaluations(n, k, fitness, search)
    rng = np.random.default_rng(seed)
    tries = max(1, search.budget // max(1, n - k))
    kept = _subset(range(n))
    if n == k:
        run.generation([kept])
    while len(kept) > k:
        run.best.clear()  # the fitness of fewer points is no better
        run.generation([_subset(np.delete(kept, i)) for i in rng.permutation(len(kept))[:tries]])
        kept = run.best[0]
    return run.result()


def farthest_point(
    n: int, k: int, fitness: BatchedFitness, search: Search = Search(), seed: int = 0, checkpoint=None, delta=None
) -> Result:
    """Add the point farthest from those kept (Gonzalez 1985); arguments of `evolve`.

    Every random first point gives one subset; the best of min(n, budget) is returned. `delta` holds the distances,
    (n, n) or pointed (n + 1, n + 1): then the base point counts as kept. Saves no checkpoint.

    Raises:
        ValueError: k outside 1 .. n, or no `delta` of n or n + 1 points.

    >>> delta = np.abs(np.subtract.outer(range(5), range(5)))
    >>> farthest_point(5, 2, lambda population: population.sum(axis=1), delta=delta).kept
    array([0, 2])
    """
    run = _Evaluations(n, k, fitness, search)
    if np.shape(delta) not in ((n, n), (n + 1, n + 1)):
        raise ValueError(
            f"delta must hold the distances of the {n} points, got an array of shape {np.shape(delta)}: "
            "make it with distance_matrix"
        )
    starts = np.random.default_rng(seed).permutation(n)[: search.budget]
    for first in range(0, len(starts), search.population):
        run.generation([_farthest_first(delta, n, k, start) for start in starts[first : first + search.population]])
    return run.result()


def _farthest_first(delta, n, k, start):
    nearest = delta[n, :n].copy() if len(delta) > n else np.full(n, np.inf)
    kept = [start]
    while len(kept) < k:
        nearest = np.minimum(nearest, delta[kept[-1], :n])
        nearest[kept[-1]] = -1  # below every distance: never drawn again
        kept.append(nearest.argmax())
    return _subset(kept)


SEARCHES = {"genetic": evolve, "random": random_search, "greedy": greedy, "farthest": farthest_point}


class _Evaluations:
    """Evaluations of one search, its best subset so far, and its history."""

    def __init__(self, n: int, k: int, fitness: BatchedFitness, search: Search):
        check_number("n", n, 1)
        check_number("k", k, 1, n)
        self.fitness, self.search = fitness, search
        self.values: dict[str, float] = {}
        self.best: list = []
        self.history: list[dict[str, Any]] = []
        self.started = time.perf_counter()

    def evaluate(self, population: list) -> None:
        """Call the fitness once, for the individuals that were never seen, and update the best one."""
        keys = [hashlib.blake2b(kept.tobytes(), digest_size=16).hexdigest() for kept in population]
        new = {key: kept for key, kept in zip(keys, population, strict=True) if key not in self.values}
        if new:
            self.values.update(zip(new, _values(self.fitness, [*new.values()]).tolist(), strict=True))
        for key, kept in zip(keys, population, strict=True):
            kept.fitness.values = (self.values[key],)
        self.best = tools.selBest([*self.best, *population], 1)

    def generation(self, population: list) -> None:
        """Evaluate a population and write its row of history."""
        self.evaluate(population)
        now = time.perf_counter()
        best = self.best[0].fitness.values[0]
        row = {"generation": len(self.history), "best": best, "evaluations": len(self.values)}
        self.history.append({**row, "seconds": now - self.started})
        self.started = now

    def continues(self) -> bool:
        """Whether generations are left and the best one has improved within the patience."""
        patience, best = self.search.patience, [row["best"] for row in self.history]
        stagnant = patience is not None and len(best) > patience and best[-1] >= best[-1 - patience]
        return len(best) <= self.search.generations and not stagnant

    def result(self) -> Result:
        return Result(np.array(self.best[0]), self.best[0].fitness.values[0], self.history)


def _values(fitness: BatchedFitness, subsets: list) -> Float[np.ndarray, " p"]:
    values = np.asarray(fitness(np.stack(subsets).view(np.ndarray)), float)
    if values.shape != (len(subsets),) or not np.isfinite(values).all():
        found = f"shape {values.shape} with {(~np.isfinite(values)).sum()} that are NaN or infinite"
        raise ValueError(f"fitness must give one finite value for each of {len(subsets)} individuals, got {found}")
    return values
