"""Tables of the torture test: what `python -m topoprune.measure.torture` wrote."""

import json
from pathlib import Path

import pandas as pd

from topoprune.report.benchmarks.measurements import RESULTS

TORTURE, CLUSTER = RESULTS / "torture.json", RESULTS / "cluster.json"


def torture(path: Path = TORTURE) -> dict:
    """A measurement that `python -m topoprune.measure.torture` wrote; by default the committed one."""
    return json.loads(path.read_text())


def torture_numbers(measured: dict) -> dict:
    """Numbers that the page on reliability quotes."""
    machine = measured["machine"]
    return {
        "kills": measured["kills"],
        "minutes": measured["seconds"] / 60,
        "commit": measured["commit"],
        "processor": machine["processor"],
        "cores": machine["cores"],
        "load": machine["load before"],
    }


def torture_phases(measured: dict) -> pd.DataFrame:
    """Phases of a run in which the kills landed."""
    return pd.DataFrame(measured["phases"])


def torture_counts(measured: dict) -> pd.DataFrame:
    """What happened after the kills."""
    names = {
        "kills": "kills that landed",
        "processes": "processes",
        "continued": "went on from what the disk held",
        "began anew": "began anew: it held nothing yet",
        "finished": "trials that came to their end",
        "records compared": "records compared",
        "lost": "finished epochs, selections or records that were lost",
        "torn": "torn files",
        "left over": "temporary files left beside a finished trial",
    }
    rows = [{"what": text, "count": measured[name]} for name, text in names.items()]
    return pd.DataFrame([*rows, {"what": "differences", "count": len(measured["differences"])}])


def torture_disk(measured: dict) -> pd.DataFrame:
    """What a full disk did to a run."""
    return pd.DataFrame(
        [
            {
                "file that could not be written": case["file"],
                "the error names file, cause and cure": "yes" if case["named"] else "no",
                "torn files": case["damaged"],
                "the same command went on to the same record": "yes" if case["continued to the same record"] else "no",
            }
            for case in measured["full disk"]
        ]
    )


def cluster(path: Path = CLUSTER) -> dict:
    """A measurement that `python -m topoprune.measure.torture --cluster` wrote; by default the committed one."""
    return json.loads(path.read_text())


def cluster_table(measured: dict) -> pd.DataFrame:
    """A study on a Dask cluster of which a worker was killed."""
    return pd.DataFrame(
        [
            {
                "records": measured["records"],
                "workers": measured["workers"],
                "killed": f"one, at a {measured['killed']}",
                "seconds": measured["seconds"],
                "differences from one worker's records": len(measured["differences"]),
                "commit": measured["commit"],
                "date": measured["date"],
            }
        ]
    )
