"""Which specs a profile has, and in which order."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TINY

from topoprune import __main__, study
from topoprune.models import build
from topoprune.network import couplings
from topoprune.selection import METHODS as METHOD_NAMES
from topoprune.study import Clouds, Dense, Portrait, Removal, Trial, spec_key
from topoprune.study.plans import companion_specs, portrait_specs, removal_specs
from topoprune.study.profiles import COMPANIONS, COMPENSATED, CONVOLUTIONS, METHODS


def test_one_process_finishes_a_comparison_before_the_next_dense_network():
    order = study.specs("study", [0, 1])
    first = order.index(study.dense_specs("study", [1])[0])
    assert order[0] == study.dense_specs("study", [0])[0]
    assert {(trial.method, trial.ratio) for trial in order[1:first]} == {
        (study.VARIANTS[name][0], ratio) for name in METHODS for ratio in (0.5, 0.8, 0.9)
    }


@pytest.mark.parametrize("name", [name for name, profile in study.PROFILES.items() if profile.methods])
def test_a_profile_is_the_product_of_its_seeds_ratios_and_methods_each_once(name):
    profile, specs = study.profile(name), study.specs(name)
    assert len({spec_key(spec) for spec in specs}) == len(specs)
    trials = {(spec.seed, spec.ratio, study.variant(spec)) for spec in specs if isinstance(spec, Trial)}
    assert trials == {(s, r, m) for s in profile.seeds for r in profile.ratios for m in profile.methods}
    assert {spec.seed for spec in specs if isinstance(spec, Dense)} == set(profile.seeds)
    removals = [(spec.dense.seed, spec.ratio, study.variant(spec)) for spec in specs if isinstance(spec, Removal)]
    assert set(removals) == {(s, r, m) for s in profile.seeds for r in profile.removal_ratios for m in profile.removals}
    draws = profile.draws if "random" in profile.removals else 0
    assert {removals.count((profile.seeds[0], ratio, "random")) for ratio in profile.removal_ratios} <= {draws}
    assert len([spec for spec in specs if isinstance(spec, Clouds)]) == bool(removals) * len(profile.seeds)
    portraits = [spec for spec in specs if isinstance(spec, Portrait)]
    layers = profile.portraits or (() if profile.removals else (profile.layer,))
    assert [spec.layer for spec in portraits] == list(layers)
    assert portraits == specs[len(specs) - len(portraits) :]
    assert {spec.dense for spec in portraits} <= set(study.dense_specs(name, profile.seeds[:1]))


def test_the_command_line_lists_every_profile_and_method():
    def listed(text, columns):
        return {word for line in text.splitlines() for word in line[:columns].replace(",", " ").split()}

    assert listed(__main__.PROFILES, 42) >= {name for name in study.PROFILES if not name.startswith("tiny")}
    assert listed(__main__.METHODS, 16) >= set(METHOD_NAMES)


def test_every_convolution_of_the_first_network_is_portrayed_with_every_choice_that_has_one():
    portraits = portrait_specs("beyond-quarter")
    groups = couplings(build("vgg16", 10, 1 / 16), torch.zeros(2, 3, 32, 32))
    assert [spec.layer for spec in portraits] == [group.layers[0] for group in groups]
    assert {spec.methods for spec in portraits} == {("random", "l1", "l2", "fpgm", "topological", "cover", "qr")}
    assert portrait_specs("beyond-quarter", [12, 10]) == portraits and portrait_specs("beyond-quarter", [12]) == []


def test_a_companion_shows_the_portraits_that_it_names_alone():
    for which, layers in (("beyond", CONVOLUTIONS), ("longer", ()), ("ablation", ())):
        _, specs = companion_specs("study", which)
        assert tuple(spec.layer for spec in specs if isinstance(spec, Portrait)) == layers


def test_removals_stand_between_a_dense_network_and_its_trials():
    kinds = [type(spec) for spec in study.specs("beyond-quarter", [11, 10])]
    assert kinds.count(Dense) == 2
    first = kinds[: kinds.index(Trial)]
    assert first[:2] == [Dense, Clouds] and set(first[2:]) == {Removal}


@pytest.mark.parametrize("seed", [0, 7, 1000])
def test_draws_are_counted_from_that_of_the_trial(seed):
    draws = [spec for spec in removal_specs("tiny-beyond", [seed]) if spec.method == "random"]
    assert [study.describe(spec) for spec in draws] == [
        f"removal by random at ratio 0.5, draw {draw}, seed {seed}" for draw in (0, 1)
    ]
    assert [spec.seed for spec in draws] == [seed, seed + 1000]


def test_a_compensated_method_is_the_same_choice_refitted():
    plain, mended = study.trial_specs("beyond", [3], ["fpgm", f"fpgm{COMPENSATED}"], [0.5])
    assert (plain.compensation, mended.compensation) == ("", "convolution")
    assert dataclasses.replace(mended, compensation="") == plain
    assert study.variant(mended) == f"fpgm{COMPENSATED}" and spec_key(plain) != spec_key(mended)


def test_every_trial_is_run_by_every_recipe_of_its_profile():
    p = study.profile("beyond-explored")
    trials = study.trial_specs("beyond-explored", [14], ["cover"])
    assert [trial.recovery for trial in trials] == [p.recovery, *p.recoveries]
    assert trials[0] == study.trial_specs("beyond-quarter", [14], ["cover"], [0.5])[0]


@pytest.mark.parametrize("name", study.PROFILES)
def test_a_dense_network_stands_before_its_trials(name):
    seen = set()
    for spec in study.specs(name):
        if isinstance(spec, Dense):
            seen.add(spec)
        else:
            assert spec.dense in seen


def test_a_profile_without_methods_is_its_dense_networks():
    assert study.specs("study-whole", [1]) == study.dense_specs("study-whole", [1])
    with pytest.raises(ValueError, match="unknown methods of study-whole: l1; it has none"):
        study.specs("study-whole", methods=["l1"])


def test_some_methods_and_ratios_of_a_profile():
    some = study.specs("study", [1], ["topological", "l1"], [0.9, 0.3])
    assert some[0] == study.dense_specs("study", [1])[0]
    assert [(spec.method, spec.ratio) for spec in some[1:]] == [
        ("topological", 0.9),
        ("l1", 0.9),
        ("topological", 0.3),
        ("l1", 0.3),
    ]
    assert all(spec in study.specs("study") for spec in some)


@pytest.mark.parametrize(
    "chosen, message",
    [
        ({"ratios": [0.4]}, "unknown ratios of study: 0.4; choose from 0.3, 0.5"),
        ({"ratios": 0.5}, "ratios must be a list, got 0.5"),
        ({"methods": ["luck", "l1", "hope"]}, "unknown methods of study: luck, hope; choose from random, l1"),
        ({"methods": "l1"}, "methods must be a list, got 'l1'"),
        ({"seeds": []}, r"seeds must be a list of whole numbers from 0, got \[\]"),
        ({"seeds": [-1]}, r"seeds must be a list of whole numbers from 0, got \[-1\]"),
        ({"seeds": [0.5]}, "seeds must be a list of whole numbers from 0"),
        ({"seeds": 3}, "seeds must be a list of whole numbers from 0, got 3"),
        ({"seeds": "12"}, "seeds must be a list of whole numbers from 0, got '12'"),
    ],
)
def test_what_a_profile_lacks_is_refused_in_one_line(chosen, message):
    with pytest.raises(ValueError, match=message) as error:
        study.specs("study", **chosen)
    assert "\n" not in str(error.value)


def test_seeds_may_come_from_numpy():
    assert study.specs("quick", np.arange(2)) == study.specs("quick", [0, 1])


def test_a_variant_keeps_its_name_whatever_its_budget():
    for name, (method, options) in study.VARIANTS.items():
        spec = Trial(study.dense_specs("quick")[0], method, 0.5, 0, TINY.recovery, options)
        assert study.variant(spec) == name
        larger = dataclasses.replace(spec, options={**options, "population": 8})
        assert study.variant(larger) == name


def test_companions_exist_and_are_listed():
    fields = {field.name for field in dataclasses.fields(study.Profile)}
    assert fields >= set(COMPANIONS)
    for name in study.PROFILES:
        assert set(study.with_companions(name)) <= set(study.PROFILES)
    assert set(study.with_companions("study")) == {
        *("study", "ablation", "study-sgd", "recovery", "study-whole", "study-cutout", "beyond-quarter"),
        *("beyond", "beyond-explored", "beyond-gentle", "beyond-gentle-quarter", "beyond-muon", "beyond-mass"),
    }


def test_dense_networks_with_cutout_have_the_data_and_the_recipe_of_those_without():
    (whole,), (cut,) = (study.dense_specs(name, [0]) for name in ("study-whole", "study-cutout"))
    assert cut.recipe.cutout and dataclasses.replace(cut, recipe=dataclasses.replace(cut.recipe, cutout=0)) == whole


def test_networks_of_muon_differ_from_those_of_sgd_in_nothing_but_the_rate_of_muon():
    sgd, muon = (study.profile(name) for name in ("beyond-quarter", "beyond-muon"))
    assert dataclasses.replace(muon.dense, muon_rate=0.0) == sgd.dense and muon.dense.muon_rate > 0
    assert (muon.width, muon.dataset, muon.recovery, muon.search) == (sgd.width, sgd.dataset, sgd.recovery, sgd.search)
    others = (seed for name, one in study.PROFILES.items() if name != "beyond-muon" for seed in one.seeds)
    assert set(muon.seeds).isdisjoint(others)


def test_gentler_fine_tuning_at_a_quarter_of_the_width_has_the_recipes_of_the_others():
    usual, narrow = (study.profile(name) for name in ("beyond-quarter", "beyond-gentle-quarter"))
    explored, wide = (study.profile(name) for name in ("beyond-explored", "beyond-gentle"))
    assert (narrow.width, narrow.dense, narrow.recovery) == (usual.width, usual.dense, usual.recovery)
    assert narrow.recoveries == explored.recoveries[-1:]
    assert dataclasses.replace(wide.recoveries[0], batch=512, muon_rate=0.0) == dataclasses.replace(
        narrow.recoveries[0], batch=512, muon_rate=0.0
    )
    own = ("beyond-gentle-quarter", "beyond-mass")  # the same networks
    others = (seed for name, one in study.PROFILES.items() if name not in own for seed in one.seeds)
    assert set(narrow.seeds).isdisjoint(others)


def test_the_mass_alone_is_compared_on_the_networks_of_the_usual_recipe():
    usual, mass = (study.profile(name) for name in ("beyond-quarter", "beyond-mass"))
    assert study.dense_specs("beyond-mass") == study.dense_specs("beyond-gentle-quarter")
    assert (mass.width, mass.dense, mass.recovery, mass.draws) == (
        usual.width,
        usual.dense,
        usual.recovery,
        usual.draws,
    )


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match="unknown profile 'huge': choose from quick, quick-ablation,"):
        study.profile("huge")
