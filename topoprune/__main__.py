"""Command line: `python -m topoprune run|status|prune`."""

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Parse, call, and turn a known error into one line and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.call(options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"topoprune: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("topoprune: interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def _run(options) -> None:
    from topoprune import study
    from topoprune.study import workers

    wanted = study.specs(options.profile, options.seeds, options.methods, options.ratios)
    task = options.profile, wanted, options.device, options.force
    if options.scheduler is not None:
        made = workers.on_cluster(options.scheduler, *task)
    elif options.workers is not None:
        made = workers.on_processes(options.workers, *task)
    else:
        made = study.records(*task)
    print(f"{len(made)} records in {study.records_store(options.profile).path}")


def _status(options) -> None:
    from topoprune import study

    while True:
        state = study.status(options.profile, options.seeds, options.methods, options.ratios)
        if options.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")  # an empty screen
        try:
            print("\n".join(study.status_lines(state)), flush=True)
        except BrokenPipeError:  # `| head` has seen enough; what is left must not be written at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if not (options.watch and state["missing"]):
            return
        time.sleep(options.every)


def _prune(options) -> None:
    from topoprune import pruning

    report = pruning.prune(
        options.model,
        options.method,
        options.ratio,
        options.seed,
        Path(options.output),
        options.weights,
        options.shape,
        options.device,
        options.round_to,
    )
    print(json.dumps(report, indent=2))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m topoprune", description="Topological filter pruning.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run what the records of a profile lack")
    run.add_argument("--force", action="store_true", help="run again what is there already")
    run.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes on this machine, a CUDA device each where there are several"
    )
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask cluster that shares the cache folder, as tcp://host:8786"
    )
    run.set_defaults(call=_run)

    status = commands.add_parser("status", help="what is done, runs, failed and waits, and the time left")
    status.add_argument("--watch", action="store_true", help="again and again, until nothing is left")
    status.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS", help="between two looks of --watch (default 5)"
    )
    status.set_defaults(call=_status)
    for command in (run, status):
        command.add_argument("--profile", default="quick", help="quick, pilot or study")
        command.add_argument("--seeds", type=int, nargs="+", help="default: the profile's")
        command.add_argument("--methods", nargs="+", metavar="M", help="default: the profile's, as l1 fpgm")
        command.add_argument("--ratios", type=float, nargs="+", metavar="R", help="default: the profile's")

    prune = commands.add_parser("prune", help="prune a checkpoint or a torchvision model into a smaller network")
    prune.add_argument(
        "model", help="a topoprune checkpoint (.safetensors), or the name of a torchvision model such as vgg16_bn"
    )
    prune.add_argument("--method", default="topological", help="random, l1, l2, fpgm or topological")
    prune.add_argument("--ratio", type=float, default=0.5, help="share of each layer's filters to remove, in [0, 1)")
    prune.add_argument(
        "--round-to",
        type=int,
        default=1,
        metavar="N",
        help="keep a multiple of N filters in each layer, for speed; 8 is usual (default 1)",
    )
    prune.add_argument("--seed", type=int, default=0)
    prune.add_argument(
        "--weights",
        default="DEFAULT",
        metavar="W",
        help="of a torchvision model: DEFAULT (downloaded), none (random), or a .safetensors state dict",
    )
    prune.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=None,
        metavar=("C", "H", "W"),
        help="input shape (default: 3 32 32 for a checkpoint, else 3 224 224)",
    )
    prune.add_argument("--device", default="cpu")
    prune.add_argument(
        "--output", default="pruned.safetensors", help="the smaller network; the report lies beside it as .json"
    )
    prune.set_defaults(call=_prune)
    return parser


if __name__ == "__main__":
    sys.exit(main())
