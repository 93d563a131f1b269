"""Profiles that the tests run for real: two small networks on the digits."""

import dataclasses

from topoprune import study
from topoprune.study.profiles import COMPENSATED, FUNCTIONAL_CHOICE
from topoprune.training import Recipe

TINY = study.Profile(
    dataset="digits",
    width=1 / 16,
    seeds=(0, 1),
    ratios=(0.5,),
    dense=Recipe(epochs=2, batch=128, peak_rate=0.1),
    recovery=Recipe(epochs=2, batch=128),
    layer="features.24",
    methods=("l1", "topological"),
    search={"population": 8, "generations": 2, "elites": 2},
)

TINY_BEYOND = dataclasses.replace(
    TINY,
    seeds=(0,),
    methods=(FUNCTIONAL_CHOICE, FUNCTIONAL_CHOICE + COMPENSATED),
    removals=("random", FUNCTIONAL_CHOICE, "qr"),
    removal_ratios=(0.5,),
    draws=2,
)
