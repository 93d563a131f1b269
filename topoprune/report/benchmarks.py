"""Tables of the benchmarks and of the kills: what `bench`, `bench_training` and `torture` wrote."""

import json
from dataclasses import dataclass
from math import ceil, nan
from pathlib import Path

import numpy as np
import pandas as pd

BENCHMARK = Path(__file__).parents[2] / "book" / "results" / "bench-fitness.json"
TORTURE, CLUSTER = BENCHMARK.with_name("torture.json"), BENCHMARK.with_name("cluster.json")
TRAINING = BENCHMARK.with_name("bench-training.json")
"""The committed run of `python -m topoprune.measure.training`; `benchmark(TRAINING)` reads it."""
EMULATED = BENCHMARK.with_name("bench-training-avx2.json")
"""Some of its sections with the processor limited to AVX2, where bfloat16 is emulated."""
TILES = BENCHMARK.with_name("bench-training-amx.json")
"""Some of its sections on a processor with AMX, which multiplies tiles of bfloat16."""
GRAPHICS = BENCHMARK.with_name("bench-training-cuda.json")
"""Some of its sections on a CUDA device."""


def benchmark(path: Path = BENCHMARK) -> dict:
    """A measurement that `python -m topoprune.measure.fitness` wrote; by default the committed one."""
    return json.loads(path.read_text())


def bench_evaluations(measured: dict) -> pd.DataFrame:
    """The reference beside the fast ways."""
    table = pd.DataFrame(measured["evaluations"]).rename(columns={"ms": "ms an evaluation"})
    difference = "largest relative difference"
    return table.assign(**{difference: table[difference].map("{:.1e}".format)})


def bench_engines(measured: dict) -> pd.DataFrame:
    """The ways tried in dimension 1."""
    return pd.DataFrame(measured["engines"])


def bench_network(measured: dict) -> pd.DataFrame:
    """One row a layer, the searches in dimension 0 and in both side by side."""
    rows = pd.DataFrame(measured["network"])
    rows["layer"] = rows["layer"].map(lambda x: x if x == "all" else str(x + 1))
    columns = ["first best", "best", "evaluations", "seconds"]
    wide = rows.pivot(index=["layer", "n"], columns="fitness", values=columns)
    wide = wide.astype({c: int for c in wide.columns if c[0] == "evaluations"})
    wide.columns = [f"{field}, {fitness}" for field, fitness in wide.columns]
    order = rows["layer"].drop_duplicates()
    return wide.reset_index().set_index("layer").loc[order].reset_index()


def bench_wide(measured: dict) -> pd.DataFrame:
    """The layer of many neurons."""
    return pd.DataFrame(measured["wide"])[["fitness", "what", "n", "evaluations", "seconds"]]


def bench_numbers(measured: dict) -> dict:
    """What the prose of the page quotes."""
    fast = {row["fitness"]: row for row in measured["evaluations"] if row["way"] == "fast"}
    tight = [row for row in measured["evaluations"] if row["way"].endswith("1e-6")]
    total = {row["fitness"]: row for row in measured["network"] if row["layer"] == "all"}
    return {
        "ratio_h0": fast["H0"]["times giotto-tda"],
        "ratio_h1": fast["H0 + H1"]["times giotto-tda"],
        "difference": max(row["largest relative difference"] for row in tight),
        "filters": total["H0"]["n"],
        "wide": measured["wide"][0]["n"],
        "seconds_h0": total["H0"]["seconds"],
        "seconds_h1": total["H0 + H1"]["seconds"],
        "processor": measured["machine"]["processor"],
        "cores": measured["machine"]["cores"],
        "load": measured["machine"]["load before"],
        "network": measured["filters"]["network"],
        "epochs": measured["filters"]["epochs"],
    }


@dataclass(frozen=True)
class Campaign:
    """A study of ImageNet's size, which nobody here has run: every field is an assumption.

    Attributes:
        images: of the training split.
        multiply_adds: of VGG-16 for one image of 224 pixels.
        networks: dense networks that are trained, one a seed.
        dense_epochs: of training each of them.
        trials: prunings that are fine-tuned, over all networks.
        recovery_epochs: of fine-tuning each of them.
        devices: GPUs; each trains one network or trial at a time.
        peak: floating-point operations a second of one GPU on bfloat16 matrices (an H100's or H200's
            data sheet, without sparsity).
        share: of that peak, which training reaches.
    """

    images: int = 1_281_167
    multiply_adds: float = 15.5e9
    networks: int = 3
    dense_epochs: int = 90
    trials: int = 75
    recovery_epochs: int = 30
    devices: int = 64
    peak: float = 989e12
    share: float = 0.3

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}: it is a share of the GPU's peak")

    def hours(self, pruned: float) -> dict[str, float]:
        """Hours of an epoch and of the study, where a trial's epoch takes `pruned` of a dense one."""
        epoch = 6 * self.multiply_adds * self.images / (self.peak * self.share) / 3600
        dense, trial = self.dense_epochs * epoch, self.recovery_epochs * epoch * pruned
        total = self.networks * dense + self.trials * trial
        rounds = [ceil(n / self.devices) for n in (self.networks, self.trials)]
        return {
            "epoch": epoch,
            "dense": dense,
            "trial": trial,
            "total": total,
            "shared": total / self.devices,
            "scheduled": rounds[0] * dense + rounds[1] * trial,
        }


def campaign_table(measured: dict, campaign: Campaign | None = None) -> pd.DataFrame:
    """The arithmetic of a study of ImageNet's size: what goes in, from where, and what comes out."""
    campaign = campaign or Campaign()
    pruned, hours = _pruned_epoch(measured), campaign.hours(_pruned_epoch(measured))
    assumed = {
        "images": f"{campaign.images:,}",
        "multiply-adds of an image": f"{campaign.multiply_adds / 1e9:g} G",
        "dense networks": f"{campaign.networks}, {campaign.dense_epochs} epochs each",
        "trials": f"{campaign.trials}, {campaign.recovery_epochs} epochs each",
        "GPUs": f"{campaign.devices}",
        "peak of a GPU": f"{campaign.peak / 1e12:g} TFLOP/s",
        "share of the peak": f"{100 * campaign.share:g} %",
    }
    computed = {
        "an epoch of a dense network, one GPU": _hours(hours["epoch"]),
        "a dense network, one GPU": _hours(hours["dense"]),
        "a trial, one GPU": _hours(hours["trial"]),
        "all, GPU hours": f"{hours['total']:,.0f}",
        "all, if every GPU were always busy": _hours(hours["shared"]),
        "all, one run a GPU at a time": _hours(hours["scheduled"]),
    }
    rows = [(name, value, "assumed") for name, value in assumed.items()]
    rows += [("a trial's epoch, of a dense one's", f"{100 * pruned:.0f} %", "measured: mean over the ratios")]
    rows += [(name, value, "computed") for name, value in computed.items()]
    return pd.DataFrame(rows, columns=["quantity", "value", "source"])


def _pruned_epoch(measured: dict) -> float:
    """Time of an epoch after removal, as a share of the dense one's; the mean over the ratios."""
    times = [1 / row["times faster, training"] for row in measured["removal"] if row["ratio"] and row["multiple"] == 1]
    return float(np.mean(times))


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def engine_loops(measured: dict) -> pd.DataFrame:
    """Training by the usual loop and in steps to ours, with the share of the machine's peak."""
    return pd.DataFrame(
        [
            {
                "way": row["way"],
                "images/s": f"{row['images/s']:,.0f}",
                "lowest to highest": f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
                "times the first": f"{row['times plain']:.2f}",
                "TFLOP/s": row["TFLOP/s"],
                "share of its precision's peak (%)": share,
            }
            for row, share in zip(measured["loops"], _peak_shares(measured), strict=True)
        ]
    )


def _peak_shares(measured: dict) -> list[float]:
    peaks = {row["precision"]: row["TFLOP/s"] for row in measured["peaks"]}
    return [100 * row["TFLOP/s"] / peaks[row["precision"]] for row in measured["loops"]]


def engine_peaks(measured: dict) -> pd.DataFrame:
    """The rate of large matrix products, which stands for the peak."""
    return pd.DataFrame(measured["peaks"])


def engine_precisions(measured: dict) -> pd.DataFrame:
    """Forward and backward in each precision, and which of them training chooses."""
    table = pd.DataFrame(measured["precisions"])
    return table.assign(chosen=table["chosen"].map({True: "yes", False: "no"}))


def engine_convolutions(measured: dict) -> pd.DataFrame:
    """A convolution of each size of images by the library and as a product of matrices."""
    return pd.DataFrame(measured["convolutions"])


def engine_operations(measured: dict) -> pd.DataFrame:
    """A step's time by family of operations; what convolutions reach of their precision's peak."""
    table = pd.DataFrame(measured["operations"]).astype({"TFLOP/s": float})
    peak = next(row["TFLOP/s"] for row in measured["peaks"] if row["precision"] == measured["loops"][-1]["precision"])
    return table.assign(**{"share of the peak (%)": 100 * table["TFLOP/s"] / peak})


def engine_removal(measured: dict) -> pd.DataFrame:
    """What remains and what it costs, by ratio and rounding; times and rates are medians."""
    table = pd.DataFrame(measured["removal"])
    for column in ("ratio", "multiple"):
        table[column] = table[column].map("{:g}".format)
    for column in ("training images/s", "inference images/s"):
        table[column] = table[column].map("{:,.0f}".format)
    return table.rename(columns={"multiple": "multiple of"})


def engine_growth(measured: dict) -> pd.DataFrame:
    """Time of a step and memory by width, and by the number of images held."""
    table = pd.DataFrame(measured["growth"]).astype({"peak MiB": float})
    return table.assign(images=table["images"].map("{:,}".format)).rename(columns={"images": "images held"})


def engine_batches(measured: dict) -> pd.DataFrame:
    """Ours beside the usual loop by the images of a step."""
    table = pd.DataFrame(measured["batches"]).astype({"batch": str})
    rates = {name: table[name].map("{:,.0f}".format) for name in ("usual images/s", "ours images/s")}
    return table.assign(**rates)


def engine_trials(measured: dict) -> pd.DataFrame:
    """The parts of a whole trial by width and workers."""
    table = pd.DataFrame(measured["trials"])
    return table.astype({"filters": int, "widest layer": int, "peak MiB": float})


def engine_processes(measured: dict) -> pd.DataFrame:
    """Training on several processes side by side."""
    table = pd.DataFrame(measured["processes"])
    return table.assign(**{"images/s": table["images/s"].map("{:,.0f}".format)})


def processor_numbers(measured: dict) -> dict:
    """What the prose quotes of a processor, of which some sections were measured."""
    plain = measured["loops"][0]
    ours, share = next(
        found
        for found in zip(measured["loops"], _peak_shares(measured), strict=True)
        if found[0]["way"].endswith("(ours)")
    )
    half = next(row for row in measured["precisions"] if row["precision"] == "bfloat16")
    return {
        "faster": half["times float32"],
        "slower": 1 / half["times float32"],
        "ratio": ours["times plain"],
        "ours": ours["images/s"],
        "plain": plain["images/s"],
        "share": share,
        "processor": measured["machine"]["processor"],
    }


def cuda_numbers(measured: dict) -> dict:
    """What the prose quotes of a CUDA device, of which some sections were measured."""
    shares = _peak_shares(measured)
    rows = {
        name: next(i for i, row in enumerate(measured["loops"]) if name in row["way"])
        for name in ("resident", "(ours)", "torch.compile")
    }
    plain, loaded = measured["loops"][:2]  # the loader with its usual and with more processes
    launched, ours, compiled = (measured["loops"][i] for i in rows.values())
    spent = {row["family"]: row["ms a step"] for row in measured["operations"]}
    busy = sum(spent.values()) - spent["between operations"]
    pruned = measured["removal"][1:]
    least = [row for row in pruned if row["ratio"] == pruned[0]["ratio"]]
    most = pruned[-1]["ratio"]
    few = [row for row in pruned if row["ratio"] == most]
    rounded = max(least, key=lambda row: row["times faster, training"])
    return {
        "device": measured["settings"]["device"],
        "goal": measured["settings"]["goal"],
        "loaders": measured["settings"]["loader processes"],
        "loaded_way": loaded["way"].removeprefix("+ "),
        "plain": plain["images/s"],
        "loaded": loaded["images/s"],
        "ours": ours["images/s"],
        "ratio": ours["times plain"],
        "loaded_ratio": ours["times plain"] / loaded["times plain"],
        "graph": ours["images/s"] / launched["images/s"],
        "share": shares[rows["(ours)"]],
        "compiled": compiled["images/s"] / ours["images/s"],
        "compiled_share": shares[rows["torch.compile"]],
        "compiled_ratio": compiled["times plain"] / loaded["times plain"],
        "compiling": compiled["first call (s)"] - ours["first call (s)"],
        "between": next(row["share (%)"] for row in measured["operations"] if row["family"] == "between operations"),
        "convolutions": 100 * (spent["convolution, forward"] + spent["convolution, backward"]) / busy,
        "norm": 100 * spent["BatchNorm"] / busy,
        "least": least[0]["ratio"],
        "least_faster": least[0]["times faster, training"],
        "rounded": rounded["multiple"],
        "rounded_faster": rounded["times faster, training"],
        "most": most,
        "most_flops": few[0]["FLOPs (%)"],
        "most_faster": few[0]["times faster, training"],
        "most_rounded": max(row["times faster, training"] for row in few),
    }


def search_growth(fitness: dict) -> pd.DataFrame:
    """Time and memory of one evaluation of the fitness against the filters of a layer.

    Args:
        fitness: what `python -m topoprune.measure.fitness` measured (half of the filters kept).
    """
    rows = pd.DataFrame(fitness["growth"])
    rows = rows[rows["varied"] == "n"].rename(columns={"n": "filters", "ms": "ms an evaluation"})
    wide = rows.pivot(index="filters", columns="fitness", values=["ms an evaluation", "peak MiB"])
    wide.columns = [f"{field}, {name}" for field, name in wide.columns]
    return wide.astype(float).reset_index()


def engine_numbers(measured: dict) -> dict:
    """What the prose of the page on the engine quotes."""
    ours = next(row for row in measured["loops"] if row["way"].endswith("(ours)"))
    share = dict(zip((row["way"] for row in measured["loops"]), _peak_shares(measured), strict=True))
    spent = {row["family"]: row["share (%)"] for row in measured["operations"]}
    pruned = [row for row in measured["removal"] if row["multiple"] == 1]
    most = max(pruned, key=lambda row: row["ratio"])
    rounded = max(
        (row for row in measured["removal"] if row["ratio"] == most["ratio"]), key=lambda row: row["efficiency (%)"]
    )
    held = [row for row in measured["growth"] if row["varied"] == "images"]
    hours = Campaign().hours(_pruned_epoch(measured))
    batches = [row["times usual"] for row in measured["batches"]]
    alone = [row for row in measured["trials"] if row["workers"] == 1]
    wide = max(alone, key=lambda row: row["width"])
    beside = [row for row in measured["trials"] if row["width"] == wide["width"]]
    return {
        "least_ratio": min(batches),
        "best_ratio": max(batches),
        "trial_minutes": wide["s a trial"] / 60,
        "trial_selection": 100 * wide["selection (s)"] / wide["s a trial"],
        "trial_memory": wide["peak MiB"] or nan,
        "trial_width": wide["width"],
        "trial_workers": beside[-1]["workers"],
        "trial_gain": beside[-1]["trials an hour"] / wide["trials an hour"],
        "way": ours["way"],
        "ours": ours["images/s"],
        "plain": measured["loops"][0]["images/s"],
        "precision": ours["precision"],
        "ratio": ours["times plain"],
        "share": share[ours["way"]],
        "plain_share": _peak_shares(measured)[0],
        "convolutions": spent["convolution, forward"] + spent["convolution, backward"],
        "norm": spent["BatchNorm"],
        "input": spent["data and augmentation"],
        "most_ratio": most["ratio"],
        "most_flops": most["FLOPs (%)"],
        "most_faster": most["times faster, training"],
        "most_efficiency": most["efficiency (%)"],
        "most_promise": 100 / most["FLOPs (%)"],
        "most_inference": most["times faster, inference"],
        "best_multiple": rounded["multiple"],
        "best_efficiency": rounded["efficiency (%)"],
        "held": held[-1]["images"],
        "narrow": held[-1]["width"],
        "held_memory": held[-1]["peak MiB"] or nan,
        "total": hours["total"],
        "scheduled": hours["scheduled"],
        "shared": hours["shared"],
        "gigabytes": Campaign().images * 3 * 224**2 / 1e9,
        "devices": Campaign().devices,
        "processor": measured["machine"]["processor"],
        "cores": measured["machine"]["cores"],
        "load": nan if measured["machine"]["load before"] is None else measured["machine"]["load before"],
        **{name.replace(" ", "_").replace("-", "_"): value for name, value in measured["settings"].items()},
    }


def torture(path: Path = TORTURE) -> dict:
    """What `python -m topoprune.measure.torture` wrote; by default the committed run."""
    return json.loads(path.read_text())


def torture_numbers(measured: dict) -> dict:
    """What the prose of the page quotes."""
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
    """Where the kills of `python -m topoprune.measure.torture` landed."""
    return pd.DataFrame(measured["phases"])


def torture_counts(measured: dict) -> pd.DataFrame:
    """What came of the kills."""
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
    """What a full disk did."""
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
    """What `python -m topoprune.measure.torture --cluster` wrote; by default the committed run."""
    return json.loads(path.read_text())


def cluster_table(made: dict) -> pd.DataFrame:
    """The study on a Dask cluster that lost a worker."""
    return pd.DataFrame(
        [
            {
                "records": made["records"],
                "workers": made["workers"],
                "killed": f"one, at a {made['killed']}",
                "seconds": made["seconds"],
                "differences from one worker's records": len(made["differences"]),
                "commit": made["commit"],
                "date": made["date"],
            }
        ]
    )
