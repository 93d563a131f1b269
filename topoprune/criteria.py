"""Criteria that say which filters stay.

A criterion of a layer sees the points of one coupling, (n, d), and gives (n,) scores: the largest stay. A criterion
of the whole network sees all couplings and gives the scores of each: they compete with one another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from topoprune.network import Coupling, copied, evaluating, run, scores


def l1(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Sum of absolute weights (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017).

    Example:
        >>> l1(np.array([[1.0, -2.0], [0.5, 0.0]])).tolist()
        [3.0, 0.5]
    """
    return np.abs(points).sum(1)


def l2(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Euclidean norm of the weights.

    Example:
        >>> l2(np.array([[3.0, 4.0], [1.0, 0.0]])).tolist()
        [5.0, 1.0]
    """
    return np.linalg.norm(points, axis=1)


def fpgm(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Sum of distances to all other filters: small near the geometric median (He et al., FPGM, CVPR 2019).

    Example:
        >>> fpgm(np.array([[0.0], [1.0], [5.0]])).tolist()
        [6.0, 5.0, 9.0]
    """
    cloud = torch.from_numpy(np.ascontiguousarray(points))
    return torch.cdist(cloud, cloud, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()


def nni(pruner: str, points: Float[np.ndarray, "n d"], keep: int) -> list[int]:
    """The choice of one of NNI's own pruners, on a 1x1 convolution whose filters are the points.

    Args:
        pruner: "L1NormPruner", "L2NormPruner" or "FPGMPruner".
        points: one row a filter.
        keep: number of filters to keep, fewer than n.

    Raises:
        ValueError: NNI is not installed.
    """
    try:
        from nni.compression import pruning
    except ImportError as error:
        raise ValueError("engine='nni' needs NNI: install topoprune[baselines], or leave the engine out") from error
    n = len(points)
    layer = nn.Sequential(nn.Conv2d(points.shape[1], n, 1, bias=False))
    layer[0].weight.data = torch.from_numpy(points)[:, :, None, None]
    ratio = (n - keep + 0.5) / n  # half a filter more: NNI rounds down
    wrapped = getattr(pruning, pruner)(layer, [{"op_names": ["0"], "sparse_ratio": ratio}])
    _, masks = wrapped.compress()
    wrapped.unwrap_model()
    return masks["0"]["weight"].flatten(1).amax(1).nonzero().flatten().tolist()


def magnitude(model: nn.Module, example_inputs: Any, couplings: Sequence[Coupling]) -> list[Tensor]:
    """Mean squared L2 norm of all weights that go with a filter, divided by its mean over the layer.

    The group magnitude of Fang et al., "DepGraph", CVPR 2023, with the defaults of Torch-Pruning.
    """
    norms = [scores(model, coupling, lambda weight: weight.detach() ** 2) for coupling in couplings]
    return [norm / norm.mean().clamp(min=1e-12) for norm in norms]


def taylor(
    model: nn.Module, example_inputs: Any, couplings: Sequence[Coupling], *, labels: Tensor | None = None
) -> list[Tensor]:
    """Absolute sum of weight times gradient, mean over all that goes with a filter: a first-order term of the loss.

    The values are comparable between layers (Molchanov et al., CVPR 2019), so there is no normaliser.

    Args:
        labels: (b,) classes of the example inputs; by default what the network itself answers.

    Raises:
        ValueError: the network does not answer with one row of class scores for each input.
    """
    with torch.inference_mode(False), torch.enable_grad():
        judged = copied(model).requires_grad_(True)
        with evaluating(judged):
            logits = run(judged, example_inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError(
                f"method 'taylor' needs class scores of shape (inputs, classes), got {type(logits).__name__}"
                f"{tuple(logits.shape) if isinstance(logits, Tensor) else ''}: use another method for this network"
            )
        F.cross_entropy(logits.float(), logits.argmax(1) if labels is None else labels).backward()
    return [
        scores(judged, coupling, lambda w: w.detach() * (0 if w.grad is None else w.grad)) for coupling in couplings
    ]
