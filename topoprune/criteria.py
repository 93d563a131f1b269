"""Criteria that say which filters stay.

A criterion of a layer sees the points of one coupling, (n, d), and gives (n,) scores: the largest stay. Or it gives,
with a second argument `keep`, the indices that stay. A criterion of what channels compute sees `Responses` in the
place of points. A criterion of the whole network sees all couplings and gives the scores of each: they compete with
one another.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from topoprune.coupling import Coupling, scores
from topoprune.functional import Responses
from topoprune.losses import check_classes
from topoprune.passes import BATCH, batch_size, eager_copy, run, seeded_parts, some_inputs


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


def folding(points: Float[np.ndarray, "n d"], keep: int) -> list[int]:
    """The filters nearest to the centres of `keep` clusters (k-means), one a cluster.

    It is the choice of model folding (Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to
    Compress", ICLR 2025), whose merging of weights is left out: a filter stands for its cluster. Where no more than
    `keep` filters differ, one of each kind stays, and the first of their copies fill up.

    Example:
        >>> sorted(folding(np.array([[0.0], [0.1], [5.0], [5.1], [9.0]]), keep=3))[-1]
        4
    """
    rows = np.asarray(points, np.float64)
    _, first = np.unique(rows, axis=0, return_index=True)
    if len(first) <= keep:
        copies = np.setdiff1d(np.arange(len(rows)), first)
        return [*first.tolist(), *copies[: keep - len(first)].tolist()]
    _, nearest = linear_sum_assignment(cdist(_centres(rows, keep), rows, "sqeuclidean"))  # one filter a centre
    return nearest.tolist()


def _centres(rows: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "k d"]:
    """Centres of k-means. The centre of a cluster without members stays where it was."""
    if count == 1:
        return rows.mean(0)[None]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
        return kmeans2(rows, count, minit="++", rng=np.random.default_rng(0))[0]


def qr(channels: Responses, keep: int) -> list[int]:
    """Interpolative decomposition: the first pivots of a QR factorisation of the weighted channels, with pivoting.

    Chee et al., "Model Preserving Compression for Neural Networks", NeurIPS 2022. Their matrix has a column of
    activations for each channel; here it is centred and weighted by the norm of what reads it. Its Gram matrix is
    enough: any root of it has the same pivots.

    Example:
        >>> qr(Responses(np.diag([1.0, 9.0, 4.0]), np.eye(3)), keep=2)
        [1, 2]
    """
    _, _, pivots = scipy.linalg.qr(channels.points().T, mode="economic", pivoting=True)
    return pivots[:keep].tolist()


def obs(channels: Responses, keep: int, ridge: float = 1e-4) -> list[int]:
    """Remove one channel at a time, the one whose loss costs the readers least once the others make up for it.

    Optimal brain surgeon on channels (Hassibi and Stork, NeurIPS 1992; Meng et al., "OSSCAR", ICML 2024). With
    covariance S and the Gram matrix G of the reading weights, channel i costs G_ii / (S^-1)_ii. Its weights then pass
    to the others, and S^-1 loses its row and column (Schur complement).

    Args:
        ridge: added to the covariance, as a share of its mean diagonal.

    Example:
        >>> obs(Responses(np.diag([1.0, 9.0, 4.0]), np.eye(3)), keep=2)
        [1, 2]
    """
    covariance, gram = channels.covariance, channels.weights.copy()
    inverse = np.linalg.inv(covariance + np.eye(len(covariance)) * (ridge * covariance.diagonal().mean() or 1.0))
    left = np.arange(len(covariance))
    while len(left) > keep:
        worst = int(np.argmin(gram.diagonal() / inverse.diagonal()))
        share = inverse[worst] / inverse[worst, worst]
        inverse -= np.outer(share, inverse[worst])
        gram -= np.outer(share, gram[worst]) + np.outer(gram[worst] - share * gram[worst, worst], share)
        inverse, gram = (np.delete(np.delete(matrix, worst, 0), worst, 1) for matrix in (inverse, gram))
        left = np.delete(left, worst)
    return left.tolist()


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
        ValueError: the network does not answer with one row of class scores for each input, or labels that are not
            the classes of the inputs.
    """
    size = batch_size(example_inputs)
    try:
        known = None if labels is None else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be class numbers, one for each input, got {labels!r:.80}") from error
    with eager_copy(model) as (judged, _), torch.enable_grad():
        judged.requires_grad_(True)
        for part, inputs in enumerate(seeded_parts(example_inputs)):
            logits = run(judged, inputs)
            own = known if size == 1 else some_inputs(known, part * BATCH, (part + 1) * BATCH)
            classes, share = _classes(logits, own), batch_size(inputs) / size
            (share * F.cross_entropy(logits.float(), classes)).backward()
    found = [
        scores(judged, coupling, lambda w: w.detach() * (0 if w.grad is None else w.grad)) for coupling in couplings
    ]
    if not any(values.any() for values in found):
        raise ValueError(
            "method 'taylor' gives every filter the score 0: the loss does not depend on them; check the "
            "labels and the inputs"
        )
    return found


def _classes(logits: Any, own: Tensor | None) -> Tensor:
    """The labels of a batch of class scores; by default what the network answers."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError(
            f"method 'taylor' needs class scores of shape (inputs, classes), got {type(logits).__name__}"
            f"{tuple(logits.shape) if isinstance(logits, Tensor) else ''}: use another method for this network"
        )
    if own is None:
        return logits.argmax(1)
    if own.shape != logits.shape[:1] or own.is_floating_point() or own.dtype == torch.bool:
        raise ValueError(
            f"labels must be class numbers, one for each input, got {own.dtype} of shape {tuple(own.shape)} for "
            f"{len(logits)} inputs"
        )
    check_classes(own.long(), logits.shape[1])
    return own.long().to(logits.device)
