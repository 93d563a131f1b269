"""What a portrait says of one layer."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TINY, TINY_BEYOND

from topoprune import study
from topoprune.fitness import diagrams, distance_matrix
from topoprune.selection import run_selection
from topoprune.study import datasets
from topoprune.study.networks import trained


@pytest.fixture
def portraits(trained, monkeypatch):
    """Portraits of two layers of a network of the tiny study, by a criterion of each kind."""
    plan = dataclasses.replace(
        TINY_BEYOND, methods=("l2", "topological", "cover", "qr"), portraits=("features.0", "features.7")
    )
    monkeypatch.setitem(study.PROFILES, "tiny-portraits", plan)
    specs = [spec for spec in study.specs("tiny-portraits") if isinstance(spec, (study.Dense, study.Portrait))]
    return [
        record for record in study.records("tiny-portraits", specs, "cpu") if isinstance(record.spec, study.Portrait)
    ]


def test_a_portrait_describes_the_filters_of_its_layer_by_every_choice(portraits):
    model, _ = trained(study.dense_specs("tiny", [0])[0], datasets.load(TINY.dataset, "cpu"))
    for portrait in portraits:
        filters = model.get_submodule(portrait.spec.layer).weight.detach().flatten(1)
        result, distances = portrait.result, distance_matrix(filters.numpy())
        assert result["norms"] == pytest.approx(torch.linalg.norm(filters, dim=1).tolist(), abs=1e-4)
        assert np.shape(result["plane"]) == (len(filters), 2)
        assert set(result["kept"]) == set(portrait.spec.methods) == {"l2", "topological", "cover", "qr"}
        for kept in result["kept"].values():
            assert len(set(kept)) == len(filters) - len(filters) // 2 and max(kept) < len(filters)
        assert set(result["kept"]["l2"]) == set(np.argsort(result["norms"])[len(filters) // 2 :].tolist())
        for name, kept in {"full": range(len(filters)), **result["kept"]}.items():
            expected = diagrams(distances[np.ix_(kept, kept)])
            for dimension, pairs in expected.items():
                found = np.reshape(result["diagrams"][name][str(dimension)], (-1, 2))
                assert found == pytest.approx(pairs, abs=1e-5)


def test_the_choices_that_look_at_what_channels_compute_are_those_of_the_method(portraits):
    data = datasets.load(TINY.dataset, "cpu")
    model, _ = trained(study.dense_specs("tiny", [0])[0], data)
    for portrait in portraits:
        layer = portrait.spec.layer
        cover = run_selection(model, data.example(1024), ratio=0.5, layers=(layer,), space="functional", search="cover")
        assert portrait.result["kept"]["cover"] == cover.kept[layer]
