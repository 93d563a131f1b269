"""Searches for the subset of k of n points with the lowest fitness; the genetic one on DEAP.

Knows a batched fitness, a callable from a population (p, k) of indices to (p,) values, and
nothing of what it means. All searches share one interface and one budget: `SEARCHES`.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from deap import base, creator, tools
from jaxtyping import Float, Int

from topoprune import files

BatchedFitness = Callable[[np.ndarray], np.ndarray]  # (p, k) indices -> (p,), lower is better

creator.create("TopopruneFitness", base.Fitness, weights=(-1.0,))
creator.create("TopopruneSubset", np.ndarray, fitness=creator.TopopruneFitness)


def _check(holds: bool, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{rule}, got {value}")


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes:
        population: individuals alive in a generation.
        generations: those after the random first one.
        elites: best individuals that survive; None: a quarter, at least one.
        crossover: probability that a child has two parents, in [0, 1].
        mutation: mean share of a child's kept points that are swapped, in [0, 1].
        tournament: individuals that compete to be a parent.
        patience: generations without a better best before it stops; None: never.
    """

    population: int = 64
    generations: int = 60
    elites: int | None = None
    crossover: float = 0.9
    mutation: float = 0.02
    tournament: int = 3
    patience: int | None = None

    def __post_init__(self):
        for name in ("population", "tournament"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        _check(self.generations >= 0, "generations must not be negative", self.generations)
        if self.elites is not None:
            rule = f"elites must lie in 1 .. population = {self.population}"
            _check(1 <= self.elites <= self.population, rule, self.elites)
        for name in ("crossover", "mutation"):
            _check(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1]", getattr(self, name))
        if self.patience is not None:
            _check(self.patience >= 1, "patience must be None or at least 1", self.patience)

    @property
    def budget(self) -> int:
        """population * (generations + 1), the evaluations that the search may ask for."""
        return self.population * (self.generations + 1)


@dataclass(frozen=True)
class Result:
    """What a search found.

    Attributes:
        kept: sorted indices.
        fitness: of `kept`.
        history: one row a generation: generation, best (so far), mean (of the population),
            diversity (mean pairwise difference as a share of the largest possible), evaluations
            (so far, repeated individuals not counted) and seconds (of that generation).
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

    Each generation keeps the elites and fills up with children of tournament winners: a child
    keeps what both parents keep and draws the rest from what one keeps; then kept points are
    swapped for removed ones. A population is one call of `fitness`; individuals seen before
    are not evaluated again. Same arguments, same result.

    checkpoint: file written at the end of every generation; if it exists and belongs to this
        search, the search goes on from there and ends as if it had never stopped.
    delta: not used; other searches need it.
    Raises ValueError unless 1 <= k <= n.
    """
    _check_size(n, k)
    rng = np.random.default_rng(seed)
    toolbox = _toolbox(n, k, search, rng)
    run = _Run(n, fitness)
    identity = {"n": n, "k": k, "seed": seed, **asdict(search)}
    state = _restored(checkpoint, identity, fitness)
    if state:
        population = [_subset(kept) for kept in state["population"]]
        run.values, run.history = dict(state["values"]), state["history"]
        run.evaluate(population)
        rng.bit_generator.state = state["generator"]
    else:
        population = [toolbox.individual() for _ in range(search.population)]
        run.generation(population)
        _save(checkpoint, identity, population, run, rng)
    while len(run.history) <= search.generations and not _stagnant(run.history, search):
        elites = tools.selBest(population, search.elites or max(1, search.population // 4))
        children = [toolbox.child(population) for _ in range(search.population - len(elites))]
        population = elites + children
        run.generation(population)
        _save(checkpoint, identity, population, run, rng)
    return run.result(tools.selBest(population, 1)[0])


def _toolbox(n: int, k: int, search: Search, rng: np.random.Generator) -> base.Toolbox:
    """Our own operators: DEAP's draw from the global `random`."""

    def individual():
        return _subset(rng.permutation(n)[:k])

    def parent(population):
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
        removed = np.ones(n, bool)
        removed[kept] = False
        stay = rng.permutation(kept)[swaps:]
        return np.concatenate([stay, rng.permutation(np.flatnonzero(removed))[:swaps]])

    def child(population):
        kept = toolbox.select(population)
        if rng.random() < search.crossover:
            kept = toolbox.mate(kept, toolbox.select(population))
        return _subset(toolbox.mutate(kept))

    toolbox = base.Toolbox()
    for operator in (individual, mate, mutate, child):
        toolbox.register(operator.__name__, operator)
    toolbox.register("select", parent)
    return toolbox


def _subset(kept):
    return creator.TopopruneSubset(np.sort(np.asarray(kept, np.int64)))


def random_search(
    n: int,
    k: int,
    fitness: BatchedFitness,
    search: Search = Search(),
    seed: int = 0,
    checkpoint: Path | None = None,
    delta: Float[np.ndarray, "m m"] | None = None,
) -> Result:
    """The best of `search.budget` random subsets; interface of `evolve`, saves no checkpoint."""
    _check_size(n, k)
    toolbox = _toolbox(n, k, search, np.random.default_rng(seed))
    run = _Run(n, fitness)
    best = []
    while len(run.history) <= search.generations and not _stagnant(run.history, search):
        population = [toolbox.individual() for _ in range(search.population)]
        run.generation(population)
        best = tools.selBest(best + population, 1)
    return run.result(best[0])


def greedy(
    n: int,
    k: int,
    fitness: BatchedFitness,
    search: Search = Search(),
    seed: int = 0,
    checkpoint: Path | None = None,
    delta: Float[np.ndarray, "m m"] | None = None,
) -> Result:
    """Remove one point at a time, the one whose loss costs least; interface of `evolve`.

    The budget is shared out evenly: each of the n - k removals tries as many points as it
    allows, drawn at random if it does not allow all (at least one is tried, whatever the
    budget). One row of history a removal. Saves no checkpoint.
    """
    _check_size(n, k)
    rng = np.random.default_rng(seed)
    run = _Run(n, fitness)
    tries = max(1, search.budget // max(1, n - k))
    kept = _subset(range(n))
    if n == k:
        run.generation([kept])
    while len(kept) > k:
        left_out = rng.permutation(len(kept))[:tries]
        population = [_subset(np.delete(kept, i)) for i in left_out]
        run.generation(population, anew=True)  # smaller subsets are worse: no best so far
        kept = tools.selBest(population, 1)[0]
    return run.result(kept)


def farthest_point(
    n: int,
    k: int,
    fitness: BatchedFitness,
    search: Search = Search(),
    seed: int = 0,
    checkpoint: Path | None = None,
    delta: Float[np.ndarray, "m m"] | None = None,
) -> Result:
    """Add the point farthest from those kept (Gonzalez 1985); interface of `evolve`.

    Every random first point gives one subset; the best of min(n, budget) is returned. `delta`
    holds the distances, (n, n) or pointed (n + 1, n + 1): then the base point counts as kept.
    Saves no checkpoint. Raises ValueError without `delta`.
    """
    _check_size(n, k)
    if delta is None or len(delta) not in (n, n + 1):
        shape = None if delta is None else delta.shape
        raise ValueError(
            f"delta must be the distances of the {n} points, got {shape}: farthest-point selection needs them"
        )
    starts = np.random.default_rng(seed).permutation(n)[: search.budget]
    run = _Run(n, fitness)
    best = []
    for first in range(0, len(starts), search.population):
        batch = starts[first : first + search.population]
        population = [_subset(_spread(delta, n, k, start)) for start in batch]
        run.generation(population)
        best = tools.selBest(best + population, 1)
    return run.result(best[0])


def _spread(delta: Float[np.ndarray, "m m"], n: int, k: int, start: int | np.integer) -> list[int]:
    nearest = delta[n, :n].copy() if len(delta) > n else np.full(n, np.inf)
    kept = [int(start)]
    while len(kept) < k:
        nearest = np.minimum(nearest, delta[kept[-1], :n])
        nearest[kept[-1]] = -1  # below every distance: never drawn again
        kept.append(int(nearest.argmax()))
    return kept


SEARCHES = {
    "genetic": evolve,
    "random": random_search,
    "greedy": greedy,
    "farthest": farthest_point,
}


class _Run:
    """Counts and remembers the evaluations of one search, and writes its history."""

    def __init__(self, n: int, fitness: BatchedFitness):
        self.n, self.fitness = n, fitness
        self.values: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.started = time.perf_counter()
        self.statistics = tools.Statistics(lambda individual: individual.fitness.values[0])
        self.statistics.register("best", min)
        self.statistics.register("mean", lambda values: float(np.mean(values)))

    def evaluate(self, population: list) -> None:
        """One call for all individuals that were never seen; the others cost nothing."""
        keys = [_key(individual) for individual in population]
        new = {key: x for key, x in zip(keys, population, strict=True) if key not in self.values}
        if new:
            values = np.asarray(self.fitness(np.stack([*new.values()]).view(np.ndarray)), float)
            if values.shape != (len(new),) or not np.isfinite(values).all():
                raise ValueError(f"fitness must give one finite value for each of {len(new)} individuals, got {values}")
            self.values.update(zip(new, values.tolist(), strict=True))
        for key, individual in zip(keys, population, strict=True):
            individual.fitness.values = (self.values[key],)

    def generation(self, population: list, anew: bool = False) -> None:
        self.evaluate(population)
        before = [] if anew else self.history[-1:]
        row = self.statistics.compile(population)
        now = time.perf_counter()
        self.history.append(
            {
                "generation": len(self.history),
                "best": min([row["best"], *(past["best"] for past in before)]),
                "mean": row["mean"],
                "diversity": _diversity(population, self.n),
                "evaluations": len(self.values),
                "seconds": now - self.started,
            }
        )
        self.started = now

    def result(self, best) -> Result:
        return Result(np.array(best), best.fitness.values[0], self.history)


def _key(kept) -> str:
    return hashlib.blake2b(kept.tobytes(), digest_size=16).hexdigest()


def _diversity(population: list, n: int) -> float:
    """Mean difference of two individuals, as a share of the largest possible one."""
    size, k = len(population), len(population[0])
    most = min(k, n - k)
    if size < 2 or most == 0:
        return 0.0
    share = np.bincount(np.concatenate(population), minlength=n) / size
    return float(min(1.0, (share * (1 - share)).sum() * size / (size - 1) / most))


def _stagnant(history: list[dict[str, Any]], search: Search) -> bool:
    if search.patience is None or len(history) <= search.patience:
        return False
    return history[-1]["best"] >= history[-1 - search.patience]["best"]


def _save(checkpoint, identity, population, run, rng) -> None:
    if checkpoint is None:
        return
    state = {
        "population": [x.tolist() for x in population],
        "values": run.values,
        "history": run.history,
        "generator": rng.bit_generator.state,
    }
    files.write_json(checkpoint, identity, state)


def _restored(checkpoint, identity, fitness) -> dict[str, Any] | None:
    """The saved state, or None; a file that is not of this search is set aside."""
    state = files.resume(files.read_json, checkpoint, identity) if checkpoint is not None else None
    if state is None or (reason := _foreign(state, identity["k"], fitness)) is None:
        return state
    return files.set_aside(checkpoint, f"{checkpoint} belongs to another search: {reason}")


def _foreign(state: Any, k: int, fitness: BatchedFitness) -> str | None:
    """Why a state cannot be of this search, though its identity is: filters are not part of that."""
    try:
        population = [_subset(x) for x in state["population"]]
        known = [state["values"][_key(x)] for x in population]
        np.random.default_rng().bit_generator.state = state["generator"]
        if any(len(x) != k for x in population) or len(state["history"]) < 1:
            return "its population is damaged"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"it holds no search ({type(error).__name__}: {error})"
    again = float(fitness(np.stack(population[:1]).view(np.ndarray))[0])
    if not np.isclose(again, known[0], rtol=1e-6):
        return f"its fitness is another ({known[0]} for a subset that has {again})"
    return None


def _check_size(n: int, k: int) -> None:
    _check(n >= 1, "n must be at least 1", n)
    _check(1 <= k <= n, f"k must lie in 1 .. n = {n}", k)
