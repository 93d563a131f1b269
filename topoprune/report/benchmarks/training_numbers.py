"""Numbers of the training benchmark that the page on the engine quotes."""

from math import nan

from topoprune.report.benchmarks.training import peak_shares


def engine_numbers(measured: dict) -> dict:
    """Numbers of the whole benchmark."""
    ours, share = _ours(measured)
    spent = {row["family"]: row["share (%)"] for row in measured["operations"]}
    unrounded = [row for row in measured["removal"] if row["multiple"] == 1]
    most = max(unrounded, key=lambda row: row["ratio"])
    rounded = max(
        (row for row in measured["removal"] if row["ratio"] == most["ratio"]), key=lambda row: row["efficiency (%)"]
    )
    held = [row for row in measured["growth"] if row["varied"] == "images"]
    batches = [row["times usual"] for row in measured["batches"]]
    alone = [row for row in measured["trials"] if row["workers"] == 1]
    wide = max(alone, key=lambda row: row["width"])
    side_by_side = [row for row in measured["trials"] if row["width"] == wide["width"]]
    return {
        "least_ratio": min(batches),
        "best_ratio": max(batches),
        "trial_minutes": wide["s a trial"] / 60,
        "trial_selection": 100 * wide["selection (s)"] / wide["s a trial"],
        "trial_memory": wide["peak MiB"] or nan,
        "trial_width": wide["width"],
        "trial_workers": side_by_side[-1]["workers"],
        "trial_gain": side_by_side[-1]["trials an hour"] / wide["trials an hour"],
        "way": ours["way"],
        "ours": ours["images/s"],
        "plain": measured["loops"][0]["images/s"],
        "precision": ours["precision"],
        "ratio": ours["times plain"],
        "share": share,
        "plain_share": peak_shares(measured)[0],
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
        "processor": measured["machine"]["processor"],
        "cores": measured["machine"]["cores"],
        "load": nan if measured["machine"]["load before"] is None else measured["machine"]["load before"],
        **{name.replace(" ", "_").replace("-", "_"): value for name, value in measured["settings"].items()},
    }


def processor_numbers(measured: dict) -> dict:
    """Numbers of another processor, on which some sections were measured."""
    plain = measured["loops"][0]
    ours, share = _ours(measured)
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
    """Numbers of a CUDA device, on which some sections were measured."""
    shares = peak_shares(measured)
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
    smallest = [row for row in pruned if row["ratio"] == most]
    rounded = max(least, key=lambda row: row["times faster, training"])
    return {
        "device": measured["settings"]["device"],
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
        "most_flops": smallest[0]["FLOPs (%)"],
        "most_faster": smallest[0]["times faster, training"],
        "most_rounded": max(row["times faster, training"] for row in smallest),
    }


def _ours(measured: dict) -> tuple[dict, float]:
    """The row of this package's loop, and its share (%) of the peak."""
    rows = zip(measured["loops"], peak_shares(measured), strict=True)
    return next((row, share) for row, share in rows if row["way"].endswith("(ours)"))
