"""Tables of the training benchmark: what `python -m topoprune.measure.training` wrote."""

import pandas as pd


def engine_loops(measured: dict) -> pd.DataFrame:
    """Images a second from the usual training loop, step by step, to this package's, with the share of the peak."""
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
            for row, share in zip(measured["loops"], peak_shares(measured), strict=True)
        ]
    )


def engine_peaks(measured: dict) -> pd.DataFrame:
    """The rate of large matrix products in each precision, which stands for the machine's peak."""
    return pd.DataFrame(measured["peaks"])


def engine_precisions(measured: dict) -> pd.DataFrame:
    """Forward and backward pass in each precision, and which precision training chooses."""
    table = pd.DataFrame(measured["precisions"])
    return table.assign(chosen=table["chosen"].map({True: "yes", False: "no"}))


def engine_convolutions(measured: dict) -> pd.DataFrame:
    """A convolution of each image size, by the library and as a matrix product."""
    return pd.DataFrame(measured["convolutions"])


def engine_operations(measured: dict) -> pd.DataFrame:
    """Time of a training step by family of operations, and the share of the peak that each reaches."""
    table = pd.DataFrame(measured["operations"]).astype({"TFLOP/s": float})
    peak = next(row["TFLOP/s"] for row in measured["peaks"] if row["precision"] == measured["loops"][-1]["precision"])
    return table.assign(**{"share of the peak (%)": 100 * table["TFLOP/s"] / peak})


def engine_removal(measured: dict) -> pd.DataFrame:
    """What remains after removal and how fast it runs, by ratio and rounding; times and rates are medians."""
    table = pd.DataFrame(measured["removal"])
    for column in ("ratio", "multiple"):
        table[column] = table[column].map("{:g}".format)
    for column in ("training images/s", "inference images/s"):
        table[column] = table[column].map("{:,.0f}".format)
    return table.rename(columns={"multiple": "multiple of"})


def training_gains(measured: dict) -> pd.DataFrame:
    """`engine_removal` in short: times faster training, a line for each ratio, a column for each rounding."""
    rows = pd.DataFrame(measured["removal"])
    rows = rows[rows["ratio"] > 0]
    table = rows.pivot(index="ratio", columns="multiple", values="times faster, training")
    table.columns = ["as they come" if multiple == 1 else f"multiples of {multiple}" for multiple in table.columns]
    return table.reset_index()


def engine_growth(measured: dict) -> pd.DataFrame:
    """Time of a training step and memory, by width and by the number of images held in memory."""
    table = pd.DataFrame(measured["growth"]).astype({"peak MiB": float})
    return table.assign(images=table["images"].map("{:,}".format)).rename(columns={"images": "images held"})


def engine_batches(measured: dict) -> pd.DataFrame:
    """This package's loop beside the usual one, by batch size."""
    table = pd.DataFrame(measured["batches"]).astype({"batch": str})
    rates = {name: table[name].map("{:,.0f}".format) for name in ("usual images/s", "ours images/s")}
    return table.assign(**rates)


def engine_trials(measured: dict) -> pd.DataFrame:
    """Seconds of each part of a whole trial, by width and number of workers."""
    table = pd.DataFrame(measured["trials"])
    return table.astype({"filters": int, "widest layer": int, "peak MiB": float})


def engine_processes(measured: dict) -> pd.DataFrame:
    """Training in several processes side by side."""
    table = pd.DataFrame(measured["processes"])
    return table.assign(**{"images/s": table["images/s"].map("{:,.0f}".format)})


def peak_shares(measured: dict) -> list[float]:
    """Share (%) of its precision's peak that each row of "loops" reaches."""
    peaks = {row["precision"]: row["TFLOP/s"] for row in measured["peaks"]}
    return [100 * row["TFLOP/s"] / peaks[row["precision"]] for row in measured["loops"]]
