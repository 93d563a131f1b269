"""The searches: proven optima, reproducibility, exact resume, clear refusals."""

import itertools
import json
import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topoprune import files
from topoprune.fitness import Fitness, distance_matrix
from topoprune.genetic import SEARCHES, Search, evolve, operators

SMALL = Search(population=16, generations=12)


def toy(population):
    """Any fitness that tells subsets apart."""
    return np.sin(population * 1.7).sum(axis=1) + (population % 5).sum(axis=1) / 7


def steps(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


def space(n=12, d=3):
    return distance_matrix(np.random.default_rng(4).normal(size=(n, d)))


@pytest.mark.parametrize("dimensions", [(0,), (0, 1)])
def test_genetic_search_finds_the_optimum_of_all_subsets(dimensions):
    fitness = Fitness(space(), dimensions)
    everything = np.array(list(itertools.combinations(range(12), 5)))
    best = fitness(everything).min()
    result = evolve(12, 5, fitness, Search(), seed=0)
    assert result.fitness == pytest.approx(best)
    assert fitness(result.kept[None])[0] == result.fitness
    assert result.history[-1]["evaluations"] < len(everything)  # by search, not by exhaustion


def test_genetic_search_beats_its_rivals_on_a_larger_case():
    delta = space(60, 5)
    fitness = Fitness(delta, (0,))
    found = {name: search(60, 30, fitness, Search(), seed=0, delta=delta).fitness for name, search in SEARCHES.items()}
    assert found["genetic"] == min(found.values())


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (6, 6), (9, 4), (9, 1)])
def test_every_search_keeps_k_points(name, n, k):
    delta = space(n)
    result = SEARCHES[name](n, k, Fitness(delta), SMALL, seed=3, delta=delta)
    assert result.kept.tolist() == sorted(set(result.kept.tolist()))
    assert len(result.kept) == k and 0 <= result.kept[0] and result.kept[-1] < n
    assert result.fitness == pytest.approx(Fitness(delta)(result.kept[None])[0])
    assert result.history[-1]["evaluations"] <= SMALL.budget
    assert result.history[-1]["best"] == result.fitness
    assert all(list(row) == ["generation", "best", "evaluations", "seconds"] for row in result.history)
    assert [row["generation"] for row in result.history] == [*range(len(result.history))]


@pytest.mark.parametrize("name", SEARCHES)
def test_same_seed_same_result_whatever_the_global_generators(name):
    results = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        results.append(SEARCHES[name](20, 8, toy, SMALL, seed=5, delta=space(20)))
    assert steps(results[0]) == steps(results[1])
    np.testing.assert_array_equal(results[0].kept, results[1].kept)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.data())
def test_operators_keep_the_size_and_what_both_parents_keep(n, data):
    k = data.draw(st.integers(1, n))
    search = Search(mutation=data.draw(st.sampled_from([0.0, 0.1, 1.0])))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    toolbox = operators(n, k, search, rng)
    mother, father = toolbox.individual(), toolbox.individual()
    child = set(toolbox.mate(mother, father).tolist())
    assert len(child) == k
    assert set(mother) & set(father) <= child <= set(mother) | set(father)
    mutant = set(np.asarray(toolbox.mutate(mother)).tolist())
    assert len(mutant) == k and mutant <= set(range(n))
    if search.mutation == 1:
        assert len(mutant - set(mother)) == min(k, n - k)
    if search.mutation == 0:
        assert mutant == set(mother)


def test_an_individual_is_evaluated_once_and_a_generation_in_one_call():
    calls = []

    def fitness(population):
        calls.append(population.tolist())
        return toy(population)

    result = evolve(10, 3, fitness, Search(population=30, generations=20), seed=0)
    seen = [tuple(kept) for call in calls for kept in call]
    assert len(seen) == len(set(seen)) == result.history[-1]["evaluations"]
    assert len(calls) <= 21


def test_elites_survive_and_the_best_never_gets_worse():
    history = evolve(40, 20, toy, SMALL, seed=0).history
    best = [row["best"] for row in history]
    assert best == sorted(best, reverse=True)
    assert best[-1] < best[0]


def test_patience_stops_a_search_that_no_longer_improves():
    search = Search(population=8, generations=500, patience=5)
    history = evolve(6, 2, toy, search, seed=0).history
    assert len(history) < 100
    assert history[-1]["best"] == history[-6]["best"]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("calls", [1, 4, 9])
def test_an_interrupted_search_ends_as_an_uninterrupted_one(tmp_path, calls):
    file = tmp_path / "layer" / "search.json"
    left = calls

    def dying(population):
        nonlocal left
        if not left:
            raise Interrupted
        left -= 1
        return toy(population)

    with pytest.raises(Interrupted):
        evolve(40, 20, dying, SMALL, seed=2, checkpoint=file)
    resumed = evolve(40, 20, toy, SMALL, seed=2, checkpoint=file)
    whole = evolve(40, 20, toy, SMALL, seed=2)
    assert steps(resumed) == steps(whole)
    np.testing.assert_array_equal(resumed.kept, whole.kept)
    assert [x.name for x in file.parent.iterdir()] == ["search.json"]
    again = evolve(40, 20, toy, SMALL, seed=2, checkpoint=file)  # finished: nothing is left to do
    assert again.history == resumed.history


def damaged(file, how):
    content = json.loads(file.read_text())
    if how == "truncated":
        file.write_text(file.read_text()[:200])
    elif how == "not ours":
        file.write_text("[1, 2]")
    elif how == "altered":
        content["value"]["history"] = content["value"]["history"][:1]
        file.write_text(json.dumps(content))
    elif how == "older":  # written before searches told their fitness
        del content["identity"]["fitness of the first points"]
        files.write_json(file, content["identity"], content["value"])


DAMAGES = ["truncated", "not ours", "altered", "older", "seed", "fitness"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_foreign_checkpoint_is_set_aside(tmp_path, how):
    file = tmp_path / "search.json"
    evolve(20, 8, toy, SMALL, seed=2, checkpoint=file)
    damaged(file, how)
    seed = 3 if how == "seed" else 2
    fitness = (lambda x: 1 - toy(x)) if how == "fitness" else toy
    with pytest.warns(UserWarning, match=r"search.json (is|was|belongs).*; set aside .*starting over"):
        result = evolve(20, 8, fitness, SMALL, seed=seed, checkpoint=file)
    assert steps(result) == steps(evolve(20, 8, fitness, SMALL, seed=seed))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["search.json", "search.json.refused"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evolve(20, 8, fitness, SMALL, seed=seed, checkpoint=file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"generations": -1}, "generations must be at least 0, got -1"),
        ({"elites": 65}, r"elites must lie in \[1, 64\], got 65"),
        ({"crossover": 1.5}, r"crossover must lie in \[0, 1\], got 1.5"),
        ({"mutation": -0.1}, r"mutation must lie in \[0, 1\], got -0.1"),
        ({"tournament": 0}, "tournament must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"crossover": float("nan")}, r"crossover must lie in \[0, 1\], got nan"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(**settings)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_wrong_size_is_named(name, k):
    with pytest.raises(ValueError, match=rf"k must lie in \[1, 5\], got {k}"):
        SEARCHES[name](5, k, toy, delta=space(5))


def test_farthest_point_selection_needs_distances():
    with pytest.raises(ValueError, match="delta must hold the distances of the 5 points, got an array of shape .."):
        SEARCHES["farthest"](5, 2, toy)


@pytest.mark.parametrize("values", [lambda x: np.full(len(x), np.nan), lambda x: x, lambda x: 1.0])
@pytest.mark.parametrize("name", ["genetic", "random"])
def test_a_fitness_without_one_finite_value_for_each_is_named(name, values):
    with pytest.raises(ValueError, match="one finite value for each of 16 individuals, got shape") as caught:
        SEARCHES[name](40, 20, values, SMALL)
    assert "\n" not in str(caught.value)
