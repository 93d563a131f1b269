"""Command line: `topoprune prune|run|status`, or `python -m topoprune`."""

import argparse
import ast
import contextlib
import json
import os
import sys
import time
from typing import Any

from topoprune import __version__


def main(arguments: list[str] | None = None) -> int:
    """Parse, call, and turn a known error into one line and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.call(options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = "vision" if missing in ("torchvision", "PIL") else "study"
        print(f"topoprune: error: this needs {missing}: pip install 'topoprune[{extra}]'", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError, OSError) as error:
        print(f"topoprune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        then = "" if options.call is _prune else "; the same command continues"
        print(f"topoprune: interrupted{then}", file=sys.stderr)
        return 130
    return 0


def _run(options) -> None:
    from topoprune import study
    from topoprune.study import workers

    if options.allow_dirty:
        os.environ["TOPOPRUNE_ALLOW_DIRTY"] = "1"  # workers inherit it
    wanted = study.specs(options.profile, options.seeds, options.methods, options.ratios)
    arguments = options.profile, wanted, options.device, options.force
    if options.scheduler is not None:
        records = workers.on_cluster(options.scheduler, *arguments)
    elif options.workers is not None:
        records = workers.on_processes(options.workers, *arguments)
    else:
        records = study.records(*arguments)
    _say(f"{len(records)} records in {study.records_store(options.profile).path}")


def _status(options) -> None:
    from topoprune import study

    while True:
        state = study.status(options.profile, options.seeds, options.methods, options.ratios)
        if options.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")  # an empty screen
        if not (_say("\n".join(study.status_lines(state))) and options.watch and state["missing"]):
            return
        time.sleep(options.every)


def _prune(options) -> None:
    from torch import nn

    from topoprune.selection import check_arguments
    from topoprune.storage import prune_file

    ratio = options.ratio if options.ratio is not None else dict(options.layer_ratio) or 0.5
    settings = dict(options.option)
    check_arguments(options.method, ratio, options.round_to, options.minimum, settings)
    names = "seed weights shape classes images device ignore minimum round_to flops parameters latency_ms steps dry_run"
    settings |= {name: getattr(options, name) for name in names.split()} | {"compensation": options.compensate}
    if options.linear:
        settings["types"] = nn.Conv2d, nn.Linear
    result, report = prune_file(options.model, options.output, options.method, ratio, **settings)
    _say(json.dumps(report, indent=2))
    print(result, file=sys.stderr)


def _say(text: str) -> bool:
    """Print; False if nobody reads it, as after `| head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python must not flush the rest at its end
        return False
    return True


def name_and_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a Python literal or a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def seconds(text: str) -> float:
    """A time to wait, above 0 and at most a day."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, at most a day (86400), got {text!r}")


METHODS = """methods:
  random        filters drawn at random, the control
  l1, l2        norm of a filter (Li et al., 2017)
  fpgm          distance to the other filters (He et al., 2019)
  folding       one filter of each cluster (k-means; Wang et al., 2025)
  topological   genetic search for the persistence diagrams of the whole layer (default); with
                --option space=functional --option search=cover, a cover of what channels compute; needs --images
  qr            pivoted QR of what channels compute (Chee et al., 2022); needs --images
  obs           optimal brain surgeon on channels (Meng et al., 2024); needs --images
  magnitude     norm over the whole architecture, at the FLOPs of `ratio`
  taylor        change of the loss over the whole architecture; needs --images"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="topoprune", description="Topological filter pruning.")
    parser.add_argument("--version", action="version", version=f"topoprune {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_prune(commands)
    _add_study(commands)
    return parser


def _add_prune(commands) -> None:
    prune = commands.add_parser(
        "prune",
        help="prune a stored network or a torchvision model into a smaller one",
        epilog=METHODS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = prune.add_argument
    add("model", help="a .safetensors file that topoprune wrote, or the name of a torchvision model, as vgg16_bn")
    add("--output", default="pruned.safetensors", help="the smaller network; the report lies beside it as .json")
    add("--method", default="topological", help="see below")
    how = prune.add_mutually_exclusive_group()
    how.add_argument("--ratio", type=float, help="share of each layer's filters to remove, in [0, 1) (default 0.5)")
    how.add_argument(
        "--layer-ratio",
        type=name_and_value,
        action="append",
        default=[],
        metavar="PATTERN=R",
        help="ratio of the layers that match, as layer1.*=0.3; may be repeated; other layers stay whole",
    )
    how.add_argument("--flops", type=float, metavar="X", help="multiply-adds to keep, a share up to 1 or a number")
    how.add_argument("--parameters", type=float, metavar="X", help="parameters to keep, a share up to 1 or a number")
    how.add_argument("--latency-ms", type=float, metavar="MS", help="median latency of one input to reach")
    add("--ignore", nargs="+", default=[], metavar="NAME", help="layers that stay whole, names or patterns")
    add("--minimum", type=int, default=1, metavar="N", help="filters that every layer keeps (default 1)")
    add("--round-to", type=int, default=1, metavar="N", help="keep a multiple of N filters, for speed; 8 is usual")
    add("--linear", action="store_true", help="prune hidden linear layers too")
    add("--steps", type=int, default=1, metavar="N", help="choose and remove in N steps (default 1)")
    add("--seed", type=int, default=0)
    add(
        "--option",
        type=name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the method, as space=folded, search=farthest or generations=20",
    )
    add(
        "--weights",
        default="DEFAULT",
        metavar="W",
        help="of a torchvision model: DEFAULT (downloaded), none (random), or a .safetensors state dict",
    )
    add("--classes", type=int, metavar="N", help="number of classes, if not the model's usual one")
    add("--shape", type=int, nargs=3, metavar=("C", "H", "W"), help="input shape (default: the file's, else 3 224 224)")
    add("--images", metavar="FOLDER", help="real inputs, a folder of images or a .safetensors tensor")
    add(
        "--compensate",
        nargs="?",
        const="convolution",
        default="",
        choices=("channels", "convolution"),
        help="refit the next layers on the images, without labels (default convolution); some 1,000 images or more",
    )
    add("--device", default="cpu")
    add("--dry-run", action="store_true", help="say what would be removed, write nothing")
    prune.set_defaults(call=_prune)


def _add_study(commands) -> None:
    run = commands.add_parser("run", help="run the trials of a profile that have no record")
    run.add_argument("--force", action="store_true", help="run again the trials that have a record")
    run.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    run.add_argument("--allow-dirty", action="store_true", help="publish records of code that is not committed")
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes on this machine, a CUDA device each where there are several"
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask cluster that shares the cache folder, as tcp://host:8786"
    )
    run.set_defaults(call=_run)
    status = commands.add_parser("status", help="show finished, running, failed and waiting trials, and the time left")
    status.add_argument("--watch", action="store_true", help="repeat until nothing is left")
    status.add_argument(
        "--every", type=seconds, default=5.0, metavar="SECONDS", help="between two updates of --watch (default 5)"
    )
    status.set_defaults(call=_status)
    for command in (run, status):
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = PROFILES
        command.add_argument("--profile", default="quick", help="see below (default quick)")
        command.add_argument("--seeds", type=int, nargs="+", help="default: the profile's")
        command.add_argument("--methods", nargs="+", metavar="M", help="default: the profile's, as l1 fpgm")
        command.add_argument("--ratios", type=float, nargs="+", metavar="R", help="default: the profile's")


PROFILES = """profiles:
  quick, quick-ablation, quick-recovery   digits, an eighth of VGG-16: minutes
  pilot, pilot-ablation, pilot-recovery   CIFAR-10, a quarter of VGG-16: hours on 2 cores
  quick-beyond, pilot-beyond              what lies beyond the thesis, on these networks
  quick-explored, pilot-explored          ways of fine-tuning, and small ratios, on these networks
  study                                   CIFAR-10, VGG-16: the published study
  study-sgd                               dense networks of SGD alone
  study-whole, study-cutout               dense networks on all 50,000 images, without and with cutout
  ablation, recovery                      the study's ablations, and fine-tuning long enough to recover
  beyond-quarter, beyond                  what lies beyond the thesis, on a quarter of VGG-16 and on the whole
  beyond-explored                         ways of fine-tuning, and small ratios, on a quarter of VGG-16
  beyond-gentle, beyond-gentle-quarter    gentler fine-tuning, on the whole VGG-16 and on a quarter
  beyond-muon                             removals from networks that Muon trained, on a quarter of VGG-16
  beyond-mass                             removals by the mass of a channel alone, on a quarter of VGG-16
  beyond-choice, beyond-choice-slow       networks by which its method and its rate were chosen"""


if __name__ == "__main__":
    sys.exit(main())
