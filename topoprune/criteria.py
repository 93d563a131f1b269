"""Criteria that rank filters: random, L1, L2, FPGM, global magnitude and Taylor."""

import copy
from bisect import bisect_left
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from jaxtyping import Float
from torch import nn

from topoprune.network import Coupling, flops, importances, remove
from topoprune.topological import points


def random(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int):
    generator = np.random.default_rng(seed)
    return [
        generator.permutation(group.choices)[:kept].tolist() for group, kept in zip(groups, remaining, strict=True)
    ], {}


def nni(pruner: str):
    """NNI's criterion on every coupling, through stand-in 1x1 convolutions.

    A stand-in's filters are the coupling's points. For an uncoupled layer these are its own
    filters, so the choice is the one that NNI makes on the network itself.
    """

    def choose(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int):
        from nni.compression import pruning

        clouds = [torch.from_numpy(cloud) for cloud in points(model, example_inputs, groups)]
        standins = nn.ModuleList(nn.Conv2d(cloud.shape[1], len(cloud), 1, bias=False) for cloud in clouds)
        for standin, cloud in zip(standins, clouds, strict=True):
            standin.weight.data = cloud[:, :, None, None]
        # Half a filter more: NNI rounds down. A ratio of 0 it refuses.
        ratios = {
            str(i): (len(cloud) - kept + 0.5) / len(cloud)
            for i, (cloud, kept) in enumerate(zip(clouds, remaining, strict=True))
            if kept < len(cloud)
        }
        chosen = [list(range(len(cloud))) for cloud in clouds]
        if ratios:
            made = getattr(pruning, pruner)(
                standins, [{"op_names": [name], "sparse_ratio": ratio} for name, ratio in ratios.items()]
            )
            _, masks = made.compress()
            made.unwrap_model()
            for name in ratios:
                mask = masks[name]["weight"].flatten(1).amax(1)
                chosen[int(name)] = mask.nonzero().flatten().tolist()
        return chosen, {}

    return choose


def magnitude(model, example_inputs, groups: list[Coupling], remaining: list[int], seed: int):
    """L2 norms of coupled filters, each layer's divided by its mean, over the whole architecture.

    Torch-Pruning's `GroupMagnitudeImportance` with its defaults (Fang et al., 2023).
    """
    importance = tp.importance.GroupMagnitudeImportance()
    return _matched(
        model, example_inputs, groups, remaining, importances(model, example_inputs, groups, importance)
    ), {}


def taylor(
    model,
    example_inputs,
    groups: list[Coupling],
    remaining: list[int],
    seed: int,
    *,
    labels: torch.Tensor | None = None,
):
    """First-order Taylor expansion of the loss, over the whole architecture.

    Torch-Pruning's `GroupTaylorImportance`: the absolute sum of weight times gradient of a filter and
    of what depends on it. There is no normaliser, the values are comparable between layers (Molchanov et
    al., CVPR 2019).

    Args:
        labels: (b,) classes of the example inputs; by default what the network itself answers.
    """
    judged = copy.deepcopy(model).eval()
    logits = judged(example_inputs)
    labels = logits.argmax(1) if labels is None else labels
    F.cross_entropy(logits, labels).backward()
    importance = tp.importance.GroupTaylorImportance(normalizer=None, multivariable=True)
    return _matched(
        model, example_inputs, groups, remaining, importances(judged, example_inputs, groups, importance)
    ), {}


def _matched(
    model, example_inputs, groups: list[Coupling], remaining: list[int], scores: list[Float[torch.Tensor, " _"]]
) -> list[list[int]]:
    """The least important filters removed, wherever they are, until the FLOPs are those of `remaining`.

    Every layer keeps its most important filter.
    """
    ranked = [score.argsort(descending=True).tolist() for score in scores]
    order = sorted((score[i].item(), layer, i) for layer, score in enumerate(scores) for i in ranked[layer][1:])

    def kept(removals: int) -> list[list[int]]:
        removed = Counter(layer for _, layer, _ in order[:removals])
        return [sorted(best[: len(best) - removed[layer]]) for layer, best in enumerate(ranked)]

    def remaining_flops(chosen: list[list[int]]) -> int:
        named = {group.layers[0]: group.channels(choice) for group, choice in zip(groups, chosen, strict=True)}
        return flops(remove(outline, shape, named), shape)

    outline, shape = copy.deepcopy(model).to("meta"), example_inputs[:2].to("meta")
    goal = remaining_flops([list(range(count)) for count in remaining])
    enough = bisect_left(range(len(order)), -goal, key=lambda m: -remaining_flops(kept(m)))
    near = [kept(m) for m in (max(enough - 1, 0), enough)]
    return min(near, key=lambda chosen: abs(remaining_flops(chosen) - goal))
