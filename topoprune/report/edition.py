"""What an edition of the book rests on: the profiles, and their records."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from topoprune import study
from topoprune.report.frames import each_once
from topoprune.study.trial import Spec

CHOSEN_BY = {"beyond-quarter": ("beyond-choice", "beyond-choice-slow")}
"""Profile -> the profiles that decided its functional choice and its rate, before its runs; no chapter shows them."""

BEYOND = (
    *("beyond-quarter", *CHOSEN_BY["beyond-quarter"], "beyond"),
    *("beyond-explored", "beyond-gentle", "beyond-gentle-quarter", "beyond-muon", "beyond-mass"),
)
"""The profiles of the published study that lie beyond the thesis."""


def profiles(name: str, seeds: Iterable[int] | None = None) -> dict[str, list[Spec] | None]:
    """Profile -> specs, of a profile, of its companions, and of what decided for them.

    None stands for all that the file of a profile holds: what decided has the specs of its day, when a first draw had
    another seed.

    Example:
        >>> [other for other in profiles("study") if other not in study.with_companions("study")]
        ['beyond-choice', 'beyond-choice-slow']
    """
    shown = study.with_companions(name, seeds)
    return {**shown, **{other: None for one in shown for other in CHOSEN_BY.get(one, ())}}


def runs(wanted: Mapping[str, Iterable[Spec] | None], folder: Path) -> list[study.Record]:
    """The records of these specs that a folder holds, each once.

    Args:
        wanted: profile -> specs, see `profiles`.
        folder: of records files, as `study.results_folder()`, or `benchmarks.RESULTS` for the published ones.
    """
    found: list[study.Record] = []
    for name, specs in wanted.items():
        stored = study.Store(folder / f"{name}.jsonl").load()
        keys = stored if specs is None else [study.spec_key(spec) for spec in specs]
        found += [study.Record.from_json(stored[key]) for key in keys if key in stored]
    return each_once(found)
