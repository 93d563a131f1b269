"""Results that others published for VGG-16 on CIFAR-10."""

import numpy as np
import pandas as pd

_NNI = [  # parameters and FLOPs removed (%), test accuracy (%) of L1, L2, FPGM
    (50.4, 50.5, 93.41, 93.37, 93.59),
    (63.3, 63.5, 93.17, 93.08, 93.02),
    (74.5, 74.8, 93.09, 92.85, 92.33),
    (83.5, 83.6, 92.29, 92.08, 92.20),
    (90.5, 90.6, 90.31, 90.90, 90.22),
    (95.6, 95.8, 87.56, 86.98, 87.94),
]

_PAPERS = [  # test accuracy (%) of the dense and the pruned network, parameters and FLOPs removed (%)
    ("L1 (Li et al., 2017)", 93.25, 93.40, 64.0, 34.3),
    ("FPGM (He et al., 2019)", 93.58, 94.00, np.nan, 34.2),
    ("HRank (Lin et al., 2020)", 93.96, 92.34, 82.0, 65.3),
    ("CHIP (Sui et al., 2021)", 93.96, 93.86, 81.6, 58.1),
    ("CHIP (Sui et al., 2021)", 93.96, 93.72, 83.3, 66.6),
    ("CHIP (Sui et al., 2021)", 93.96, 93.18, 87.3, 78.6),
    ("CORING (Pham et al., 2024)", 93.96, 94.42, 81.6, 58.1),
    ("CORING (Pham et al., 2024)", 93.96, 94.20, 83.3, 66.6),
    ("CORING (Pham et al., 2024)", 93.96, 93.83, 87.3, 78.6),
]


def published_table() -> pd.DataFrame:
    """Published test accuracies after fine-tuning, which was longer than in this study.

    Source: `comparison_result_vgg16.json` of NNI v2.0, and the papers.
    """
    nni = [
        (f"{method} (NNI's comparison, v2.0)", 92.98, accuracy, parameters, flops)
        for parameters, flops, *accuracies in _NNI
        for method, accuracy in zip(("L1", "L2", "FPGM"), accuracies, strict=True)
    ]
    columns = ["method", "dense (%)", "pruned (%)", "parameters removed (%)", "FLOPs removed (%)"]
    return pd.DataFrame([*nni, *_PAPERS], columns=columns)


def published_ranges() -> pd.DataFrame:
    """`published_table` in short: one line a source, from the least to the most FLOPs removed."""
    rows = [
        {
            "method": method,
            "dense (%)": f"{dense:.2f}",
            "FLOPs removed (%)": _from_to(group["FLOPs removed (%)"], 1),
            "pruned (%)": _from_to(group["pruned (%)"], 2),
        }
        for (method, dense), group in published_table().groupby(["method", "dense (%)"], sort=False)
    ]
    return pd.DataFrame(rows)


def _from_to(values: pd.Series, digits: int) -> str:
    first, last = (f"{value:.{digits}f}" for value in (values.iloc[0], values.iloc[-1]))
    return first if len(values) == 1 else f"{first} to {last}"
