"""The experiments: profiles, trials, records, and the processes that run them.

Start with `records`: it loads the records of a profile, and runs those that are missing.
"""

from topoprune.study.datasets import load as load_data
from topoprune.study.execution import run
from topoprune.study.grid import (
    RunError,
    companion_records,
    published_records,
    records,
    records_of_profiles,
    records_store,
    results_folder,
)
from topoprune.study.plans import (
    dense_specs,
    describe,
    portrait_spec,
    specs,
    trial_specs,
    variant,
    with_companions,
)
from topoprune.study.profiles import LAYERWISE, PROFILES, VARIANTS, Profile, profile
from topoprune.study.progress import status, status_lines
from topoprune.study.store import Store
from topoprune.study.trial import Clouds, Dense, Portrait, Record, Removal, Trial, spec_key

__all__ = [
    "LAYERWISE",
    "PROFILES",
    "VARIANTS",
    "Clouds",
    "Dense",
    "Portrait",
    "Profile",
    "Record",
    "Removal",
    "RunError",
    "Store",
    "Trial",
    "companion_records",
    "dense_specs",
    "describe",
    "load_data",
    "portrait_spec",
    "profile",
    "published_records",
    "records",
    "records_of_profiles",
    "records_store",
    "results_folder",
    "run",
    "spec_key",
    "specs",
    "status",
    "status_lines",
    "trial_specs",
    "variant",
    "with_companions",
]
