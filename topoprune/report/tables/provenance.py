"""Tables of what is on record, and of where, when and with what it was made."""

from collections.abc import Sequence

import pandas as pd

from topoprune.report.frames import name_of, typed_frame
from topoprune.study import Record, trial_specs
from topoprune.study.trial import spec_key

_RUN_COLUMNS = ("kind", "device", "date", "commit", "Python", "torch")
_ORIGIN = ("device", "date", "seconds")


def coverage(profile: str, records: Sequence[Record], seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """Dense networks on record, of those planned: one row for each method of the profile, one column for each ratio."""
    on_record = {record.key for record in records}
    rows = [
        {"method": name_of(spec), "ratio": f"{spec.ratio:g}", "on record": spec_key(spec) in on_record}
        for spec in trial_specs(profile, seeds)
    ]
    frame = typed_frame(rows, {"method": "object", "ratio": "object", "on record": "bool"})
    counts = frame.groupby(["method", "ratio"], sort=False)["on record"]
    cells = counts.sum().astype(int).astype(str) + " of " + counts.size().astype(str)
    table = cells.unstack("ratio")
    return table[sorted(table.columns, key=float)].reset_index()


def coverage_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `coverage` in short: how many methods have so many of their dense networks on record, by ratio."""
    cells = table.melt("method", var_name="ratio", value_name="dense networks on record")
    counts = cells.groupby(["ratio", "dense networks on record"], sort=False)["method"]
    return counts.size().reset_index(name="methods")


def how_it_was_run(records: Sequence[Record]) -> pd.DataFrame:
    """Where, when, from which commit and for how many minutes the records were made."""
    rows = [
        {
            "kind": type(record.spec).__name__,
            "device": record.provenance["device"],
            "date": record.provenance["date"],
            "commit": record.provenance["commit"],
            "Python": record.provenance["python"],
            "torch": record.provenance["versions"]["torch"],
            "seconds": record.provenance["seconds"],
        }
        for record in records
    ]
    frame = typed_frame(rows, {**dict.fromkeys(_RUN_COLUMNS, "object"), "seconds": "float64"})
    table = frame.groupby(list(_RUN_COLUMNS)).agg(records=("seconds", "size"), minutes=("seconds", "sum"))
    table["minutes"] = (table["minutes"] / 60).round(1)
    return table.reset_index()


def runs_by_device(records: Sequence[Record]) -> pd.DataFrame:
    """`how_it_was_run` in short: one row for each kind of record and device.

    Returns:
        kind, device, records, dates (first to last), hours.
    """
    rows = [
        {"kind": type(record.spec).__name__, **{name: record.provenance[name] for name in _ORIGIN}}
        for record in records
    ]
    frame = typed_frame(rows, {**dict.fromkeys(("kind", *_ORIGIN), "object"), "seconds": "float64"})
    groups = frame.groupby(["kind", "device"])
    table = groups.agg(records=("date", "size"))
    first, last = groups["date"].min(), groups["date"].max()
    table["dates"] = first.where(first == last, first + " to " + last)
    table["hours"] = (groups["seconds"].sum() / 3600).map("{:.2f}".format)
    return table.reset_index()


def commits_by_state(records: Sequence[Record]) -> pd.DataFrame:
    """`commits_table` in short: commits and records of clean working trees, and of those with uncommitted changes."""
    groups = commits_table(records).groupby("clean", sort=False)
    columns = {
        "commits": ("commit", "size"),
        "records": ("records", "sum"),
        "from": ("from", "min"),
        "to": ("to", "max"),
    }
    return groups.agg(**columns).reset_index()


def commits_table(records: Sequence[Record]) -> pd.DataFrame:
    """The states of the code that made the records, the oldest first.

    Returns:
        A row for each commit: commit; clean ("no" if its working tree had changes that were not committed); records;
        from, to: dates.
    """
    rows = [{"commit": record.provenance["commit"], "date": record.provenance["date"]} for record in records]
    dates = typed_frame(rows, {"commit": "object", "date": "object"}).groupby("commit")["date"]
    table = dates.agg(records="size", **{"from": "min", "to": "max"}).reset_index()
    table.insert(1, "clean", ["no" if is_dirty(commit) else "yes" for commit in table["commit"]])
    return table.sort_values(["from", "to", "commit"], ignore_index=True)


def commit_numbers(records: Sequence[Record]) -> dict[str, int]:
    """What the prose says of `commits_table`: records, commits, dirty (records of a tree with changes)."""
    commits = [record.provenance["commit"] for record in records]
    return {
        "records": len(commits),
        "commits": len({commit.removesuffix(_DIRTY) for commit in commits}),
        "dirty": sum(map(is_dirty, commits)),
    }


def is_dirty(commit: str) -> bool:
    """Whether a record's commit names a working tree with changes that were not committed."""
    return commit.endswith(_DIRTY)


_DIRTY = "-dirty"
"""What git adds to the name of such a commit."""


def versions(records: Sequence[Record]) -> pd.DataFrame:
    """Versions of the libraries that the records were made with."""
    known: dict[str, set] = {}
    for record in records:
        for name, version in record.provenance["versions"].items():
            known.setdefault(name, set()).add(version)
    rows = [{"library": name, "versions": ", ".join(sorted(those))} for name, those in known.items()]
    return pd.DataFrame(rows, columns=["library", "versions"])
