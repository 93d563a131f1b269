"""Stage the book: copy its pages and run every chapter live through papermill.

    python book/build.py --profile quick [--device cuda] [--seeds 0 1 2] [--force] [--set NAME=VALUE]

The finished notebooks lie under `_build/stage`, which Jupyter Book then renders without running
anything. A chapter is published there only when it ran to its end; what a failed one left lies
under `_build/partial`. Records are read from and written to TOPOPRUNE_RESULTS (see the Makefile).
"""

import argparse
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillException, PapermillExecutionError

from topoprune._engine.precision import default_device
from topoprune.study import results_folder
from topoprune.study.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
STAGE = BUILD / "stage"
# Together these chapters run every record once; those after them would run it again.
FORCED = {"dense", "baselines", "topological", "comparison", "ablations"}


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks that `_toc.yml` lists, in its order, relative to the root."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    entries = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [Path(entry + ".ipynb") for entry in entries if (root / (entry + ".ipynb")).exists()]


def check(notebooks: list[Path], parameters: dict, root: Path = ROOT) -> dict[Path, dict]:
    """Each chapter's own parameters; papermill by itself would run on after a name it does not know."""
    declared = {path: papermill.inspect_notebook(root / path).keys() for path in notebooks}
    known = set().union(*declared.values())
    if unknown := parameters.keys() - known:
        raise SystemExit(
            f"build.py: unknown parameter {', '.join(sorted(unknown))}: "
            f"the chapters have {', '.join(sorted(known)) or 'none'}"
        )
    return {
        path: {
            name: value
            for name, value in parameters.items()
            if name in names and (name != "force" or path.stem in FORCED)
        }
        for path, names in declared.items()
    }


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def digest(*paths: Path) -> str:
    """SHA-256 of the files' contents, in the order of their names."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()


def stage() -> None:
    """A fresh copy of the book's sources, with the repository's address where git knows a public one."""
    shutil.rmtree(STAGE, ignore_errors=True)
    left_out = shutil.ignore_patterns("*.ipynb", "*.py", "results", "__pycache__", ".*")
    shutil.copytree(ROOT / "book", STAGE / "book", ignore=left_out)
    shutil.copy(ROOT / "_toc.yml", STAGE)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    origin = git("remote", "get-url", "origin")
    if address := re.fullmatch(r"(?:https://|git@)github\.com[:/](.+?)(?:\.git)?/?", origin):
        config["repository"] = {"url": f"https://github.com/{address[1]}", "branch": "main"}
        config["html"]["use_repository_button"] = True
        config["html"]["use_issues_button"] = True
        config["sphinx"]["config"]["html_theme_options"]["use_source_button"] = True
        config["launch_buttons"] = {"binderhub_url": "https://mybinder.org"}
    (STAGE / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False))


def run(path: Path, parameters: dict) -> None:
    """Run one chapter to a partial file and publish it, whole and with its provenance, into the stage."""
    print(f"build.py: {path}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    partial = BUILD / "partial" / path.name
    partial.parent.mkdir(parents=True, exist_ok=True)
    left = f"what ran of it is in {partial.relative_to(ROOT)}"
    try:
        papermill.execute_notebook(
            ROOT / path,
            partial,
            parameters,
            cwd=STAGE / path.parent,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as error:
        raise SystemExit(
            f"build.py: {path} stopped at cell {error.cell_index}: {error.ename}: {error.evalue}; {left}"
        ) from None
    except (PapermillException, DeadKernelError) as error:
        raise SystemExit(f"build.py: {path} stopped: {error}; {left}") from None

    notebook = nbformat.read(partial, as_version=4)
    ran = notebook.metadata.papermill
    cells = [cell.metadata.papermill.status for cell in notebook.cells if cell.cell_type == "code"]
    if ran.exception or not ran.end_time or set(cells) - {"completed"}:
        raise SystemExit(f"build.py: {path} did not run to its end; {left}")
    for cell in notebook.cells:
        if "outputs" in cell:  # progress bars and warnings were shown while it ran
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("hide-input")
            cell.metadata["mystnb"] = {"code_prompt_show": "Show the parameters of this run"}
    ran.input_path, ran.output_path = str(path), str(path)  # a download names no path of this machine
    device = parameters.get("device") or default_device()
    notebook.metadata["topoprune"] = provenance(device, time.perf_counter() - started) | {
        "lock": digest(*ROOT.glob("requirements.lock")),
        "records": digest(*results_folder().glob(f"{parameters.get('profile')}.jsonl")),
    }
    nbformat.write(notebook, partial)
    os.replace(partial, STAGE / path)


def run_side_by_side(todo: dict[Path, dict]) -> None:
    """Run chapters that do not need each other; a failure ends it when those that have begun are done."""
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), get_context("spawn")) as pool:
        futures = [pool.submit(run, path, own) for path, own in todo.items()]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="quick", choices=["quick", "pilot", "study"])
    parser.add_argument("--device", help="cpu or cuda (default: what the machine has)")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the profile's own")
    parser.add_argument("--force", action="store_true", help="run again what the records already hold")
    parser.add_argument("--set", type=assignment, action="append", default=[], metavar="NAME=VALUE")
    given = vars(parser.parse_args())
    parameters = given | dict(given.pop("set"))

    todo = check(chapters(), parameters)
    stage()
    if os.environ.get("TOPOPRUNE_NO_RUN"):  # they only read records
        run_side_by_side(todo)
    else:
        for path, own in todo.items():
            run(path, own)


if __name__ == "__main__":
    main()
