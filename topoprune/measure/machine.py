"""What the measurements share: the machine, the memory of a process, tables printed and kept."""

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

Rows = list[dict[str, Any]]


def run(sections: dict[str, Callable[..., Rows]], arguments: tuple, found: dict, output: Path) -> None:
    """Run all sections, print their tables under `found`, and write both after each.

    Args:
        sections: name -> a function of `arguments`, its first line of documentation the title.
        arguments: what every section is given.
        found: what is known before; each section's rows are added under its name.
        output: file of the JSON; never half written.
    """
    print(json.dumps(found, indent=1))
    for name, section in sections.items():
        started = time.perf_counter()
        found[name] = section(*arguments)
        print(f"\n{(section.__doc__ or name).splitlines()[0]} ({time.perf_counter() - started:.0f} s)")
        print(pd.DataFrame(found[name]).to_string(index=False, float_format=lambda x: f"{x:.4g}"), flush=True)
        files.write(output, (json.dumps(found, indent=1) + "\n").encode())


def machine(packages: list[str]) -> dict[str, Any]:
    """Processor, cores, load of others and versions; no names or paths."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def memory(field: str, reset: bool = False) -> int | None:
    """A field of the process's memory (VmRSS, VmHWM) in KiB where the system (Linux) tells it.

    Args:
        field: as /proc/self/status calls it.
        reset: let the peak, VmHWM, start again from here.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(x.split()[1]) for x in lines if x.startswith(field + ":"))
