"""Stage the book: run what the records lack, execute every chapter on the records, and copy the pages.

    python book/build.py --profile quick [--device cuda] [--seeds 0 1 2] [--workers 2] [--force] [--set NAME=VALUE]

Jupyter Book then renders `_build/stage` without running anything. A chapter is published there only if it ran to its
end; what a failed one left is in `_build/partial`. Records are read from and written to TOPOPRUNE_RESULTS; with
TOPOPRUNE_NO_RUN nothing is trained, and the chapters show the records that exist.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillException, PapermillExecutionError

from topoprune.__main__ import name_and_value

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
STAGE = BUILD / "stage"
MOST_PROCESSES = 8
FOLDERS = ("TOPOPRUNE_RESULTS", "TOPOPRUNE_CACHE", "TOPOPRUNE_DATA")
PDF_LINK = 'Or read the book <a href="../topoprune.pdf">as one PDF</a>.'
LONGEST = ("own", "beyond", "intro", "explain", "comparison")
"""Chapters that take longest. They are begun first, so that no core is idle at the end."""


def main() -> None:
    """Parse the options and stage the book; any known error is one line."""
    options = _parser().parse_args()
    _make_folders_absolute()
    parameters = {"profile": options.profile, "device": options.device, "seeds": options.seeds, **dict(options.set)}
    may_run = not os.environ.get("TOPOPRUNE_NO_RUN")
    if options.force and not may_run:
        raise SystemExit("build.py: --force discards records, which TOPOPRUNE_NO_RUN forbids to run again: drop one")
    todo = parameters_by_chapter(chapters(), parameters)
    stage_pages(options.pdf)
    if may_run:
        run_missing_trials(options.profile, options.seeds, options.device, options.force, options.workers)
        os.environ["TOPOPRUNE_NO_RUN"] = "1"  # all records exist: the chapters only read them
    execute_side_by_side(todo)


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks that `_toc.yml` lists, in its order, relative to the root."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    entries = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    return [Path(entry + ".ipynb") for entry in entries if (root / (entry + ".ipynb")).exists()]


def parameters_by_chapter(notebooks: list[Path], parameters: dict, root: Path = ROOT) -> dict[Path, dict]:
    """Give each chapter the parameters that it declares.

    Raises:
        SystemExit: a parameter that no chapter declares. Papermill by itself would only mention it.
    """
    declared = {path: papermill.inspect_notebook(root / path).keys() for path in notebooks}
    known = set().union(*declared.values())
    if unknown := parameters.keys() - known:
        raise SystemExit(
            f"build.py: unknown parameter {', '.join(sorted(unknown))}: "
            f"the chapters have {', '.join(sorted(known)) or 'none'}"
        )
    return {
        path: {name: value for name, value in parameters.items() if name in names} for path, names in declared.items()
    }


def stage_pages(pdf: bool = False) -> None:
    """Copy the book's sources afresh, with the repository's address if it is a public one of GitHub.

    Args:
        pdf: whether the front page links to the PDF, which `make site` prints afterwards.
    """
    shutil.rmtree(STAGE, ignore_errors=True)
    left_out = shutil.ignore_patterns("*.ipynb", "*.py", "results", "__pycache__", ".*")
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=left_out)
    shutil.copy(ROOT / "_toc.yml", STAGE)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    if address := re.fullmatch(r"(?:https://|git@)github\.com[:/](.+?)(?:\.git)?/?", _origin()):
        config["repository"] = {"url": f"https://github.com/{address[1]}", "branch": "main"}
        config["html"]["use_repository_button"] = True
        config["html"]["use_issues_button"] = True
        config["sphinx"]["config"]["html_theme_options"]["use_source_button"] = True
        config["launch_buttons"] = {"binderhub_url": "https://mybinder.org"}
    if pdf:
        config["parse"]["myst_substitutions"]["pdf"] = PDF_LINK
    (STAGE / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def run_missing_trials(
    profile: str, seeds: list[int] | None, device: str | None, force: bool, processes: int | None
) -> None:
    """Run what the records of a profile and of its companions lack, side by side.

    Args:
        profile, seeds, device, force: see `topoprune.study.records`.
        processes: by default one a core, or one a CUDA device.

    Raises:
        SystemExit: a run failed, images are missing, or a records file is damaged.
    """
    from topoprune import study
    from topoprune.study.workers import profiles_on_processes

    processes = processes or _one_a_core_or_device(device)
    try:
        wanted = study.with_companions(profile, seeds)
        if processes == 1:
            study.records_of_profiles(wanted, device, force)
        else:
            profiles_on_processes(processes, wanted, device, force)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(f"build.py: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:
        raise SystemExit("build.py: interrupted; the same command continues") from None


def execute_side_by_side(todo: dict[Path, dict]) -> None:
    """Execute the chapters and publish each one that ran to its end.

    Raises:
        SystemExit: a chapter failed. Those that had begun are finished and published first.
    """
    failures = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core each
    with ProcessPoolExecutor(min(MOST_PROCESSES, os.cpu_count() or 1), get_context("spawn")) as pool:
        longest_first = [path for stem in LONGEST for path in todo if path.stem == stem]
        longest_first += [path for path in todo if path not in longest_first]
        futures = {pool.submit(execute, path, todo[path]): path for path in longest_first}
        for future in as_completed(futures):
            path = futures[future]
            if future.cancelled():
                continue
            if error := future.exception():
                failures.append(error)
                pool.shutdown(wait=False, cancel_futures=True)
            else:
                publish(path, todo[path], future.result())
    if failures:
        raise failures[0]


def execute(path: Path, parameters: dict) -> float:
    """Execute one chapter into `_build/partial`.

    Returns:
        The seconds that it took.

    Raises:
        SystemExit: it did not run to its end.
    """
    print(f"build.py: {path}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    partial = _partial(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial_name = partial.relative_to(BUILD.parent)
    try:
        papermill.execute_notebook(
            ROOT / path,
            partial,
            parameters,
            cwd=STAGE / path.parent,
            progress_bar=False,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as error:
        raise SystemExit(
            f"build.py: {path} stopped at cell {error.cell_index}: {error.ename}: {error.evalue}; "
            f"{partial_name} shows how far it came"
        ) from None
    except (PapermillException, DeadKernelError) as error:
        raise SystemExit(f"build.py: {path} stopped: {error}; {partial_name} shows how far it came") from None
    if not _ran_to_its_end(nbformat.read(partial, as_version=4)):
        raise SystemExit(f"build.py: {path} did not run to its end; {partial_name} shows how far it came")
    return time.perf_counter() - started


def publish(path: Path, parameters: dict, seconds: float) -> None:
    """Move an executed chapter into the stage, without what was printed to stderr, and note where it came from."""
    from topoprune.study.execution import default_device
    from topoprune.study.provenance import provenance

    notebook = nbformat.read(_partial(path), as_version=4)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")  # the page says them, and the notebook that it offers has them
    papermill_metadata = notebook.metadata.papermill
    papermill_metadata.input_path = papermill_metadata.output_path = str(path)  # no path of this machine
    notebook.metadata["topoprune"] = provenance(parameters.get("device") or default_device(), seconds) | {
        "lock": _digest(ROOT.glob("requirements.lock")),
        **_digest_of_records(parameters.get("profile")),
    }
    nbformat.write(notebook, _partial(path))
    os.replace(_partial(path), STAGE / path)


def _ran_to_its_end(notebook: nbformat.NotebookNode) -> bool:
    statuses = {cell.metadata.papermill.status for cell in notebook.cells if cell.cell_type == "code"}
    whole = notebook.metadata.papermill
    return not whole.exception and bool(whole.end_time) and statuses <= {"completed"}


def _partial(path: Path) -> Path:
    return BUILD / "partial" / path.name


def _make_folders_absolute() -> None:
    """Chapters run in another folder than training: for both a folder is relative to that of the caller."""
    os.environ.update({name: os.path.abspath(os.environ[name]) for name in FOLDERS if os.environ.get(name)})


def _digest_of_records(profile: str | None) -> dict[str, str]:
    """The digest of the records of a profile and its companions, as `records`; nothing where none are on record."""
    from topoprune import study

    stores = [study.records_store(name).path for name in study.with_companions(profile)] if profile else []
    on_record = [path for path in stores if path.exists()]
    return {"records": _digest(on_record)} if on_record else {}


def _digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the files' contents, in the order of their names."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


def _origin() -> str:
    """The address of the repository that this checkout was cloned from; empty if git knows none, or is missing."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _one_a_core_or_device(device: str | None) -> int:
    import torch

    from topoprune.study.execution import default_device

    if (device or default_device()).startswith("cuda"):
        return max(1, torch.cuda.device_count())
    return min(MOST_PROCESSES, os.cpu_count() or 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", default="quick", choices=["quick", "pilot", "study"])
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the profile's own")
    parser.add_argument("--workers", type=int, help="processes that run trials (default: one a core or CUDA device)")
    parser.add_argument("--force", action="store_true", help="discard the records of the profile and run them again")
    parser.add_argument("--pdf", action="store_true", help="link to the PDF that `make site` prints")
    parser.add_argument(
        "--set", type=name_and_value, action="append", default=[], metavar="NAME=VALUE", help="a chapter's parameter"
    )
    return parser


if __name__ == "__main__":
    main()
