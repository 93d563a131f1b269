"""Describe the machine and its memory; run the sections of a benchmark and keep their tables."""

import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from topoprune import files

Row = dict[str, Any]
"""Column -> value: one line of a table."""


def run_sections(
    sections: dict[str, Callable[..., list[Row]]], arguments: tuple[Any, ...], heading: dict[str, Any], output: Path
) -> None:
    """Run each section, print its table, and write all tables so far to `output`.

    Args:
        sections: name -> function that returns the rows of a table. The first line of its docstring is the title.
        arguments: passed to every section.
        heading: facts that stand before the tables in the JSON, such as the machine.
        output: JSON file, replaced atomically after each section.
    """
    print(json.dumps(heading, indent=1))
    tables: dict[str, list[Row]] = {}
    for name, section in sections.items():
        started = time.perf_counter()
        tables[name] = section(*arguments)
        print(f"\n{(section.__doc__ or name).splitlines()[0]} ({time.perf_counter() - started:.0f} s)")
        print(pd.DataFrame(tables[name]).to_string(index=False, float_format=lambda x: f"{x:.4g}"), flush=True)
        files.write(output, (json.dumps({**heading, **tables}, indent=1) + "\n").encode())


def describe_machine(packages: list[str]) -> Row:
    """Processor, cores, load, and versions of Python and `packages`. Names no host and no path."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def resident_memory() -> int | None:
    """Memory of this process in KiB, or None where the system is not Linux. Resets the peak to it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status_field("VmRSS")


def peak_memory() -> int | None:
    """Largest memory of this process in KiB since `resident_memory` was called, or None where unknown."""
    return _status_field("VmHWM")


def _status_field(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
