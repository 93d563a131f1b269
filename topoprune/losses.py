"""The losses of labels and of a teacher (Hinton et al., 2015), and the checks of both."""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topoprune._engine.precision import autocast
from topoprune.passes import device_of

UNLABELLED = -100
"""PyTorch's mark of an input without a label."""


def loss_of_labels(scores: Tensor, labels: Tensor, smoothing: float, search: bool) -> Tensor:
    """Cross-entropy; `search` for class numbers out of range as well, for which a GPU has to wait."""
    labels = checked_labels(scores, labels, probabilities=True)
    if search:
        (check_classes if labels.shape != scores.shape else check_probabilities)(labels, scores.shape[1])
    return F.cross_entropy(scores, labels, label_smoothing=smoothing)


def checked_labels(scores: Tensor, labels: Tensor, probabilities: bool = False) -> Tensor:
    """Class numbers as int64, or probabilities where they serve. Labels of another shape would be broadcast."""
    soft = probabilities and labels.is_floating_point() and labels.shape == scores.shape
    if scores.ndim < 2 or not (soft or labels.shape == scores.shape[:1] + scores.shape[2:]):
        raise ValueError(
            f"labels must be class numbers (b,) for scores (b, classes), got shapes {tuple(labels.shape)} and "
            f"{tuple(scores.shape)}: pass labels.argmax(1) of one-hot labels, labels.squeeze(1) of a column"
        )
    if scores.shape[1] == 1:
        raise ValueError("one score tells no classes apart: answer with a score for each class, two for yes and no")
    if not soft and labels.numel() and (labels.is_floating_point() or labels.is_complex()):
        raise ValueError(f"labels must be class numbers, got {labels.dtype}: pass labels.long() of whole numbers")
    return labels if soft else labels.long()


def check_probabilities(labels: Tensor, classes: int) -> None:
    """Refuse what is not the probabilities of an input's classes, as scores in their place."""
    if labels.numel() and ((labels < 0).any() or (labels.float().sum(1) - 1).abs().max() > 0.01):
        raise ValueError(f"labels of floats must be probabilities of {classes} classes with the sum 1: use softmax(1)")


def check_classes(labels: Tensor, classes: int) -> None:
    """Refuse class numbers that have no score."""
    if len(wrong := labels[((labels < 0) & (labels != UNLABELLED)) | (labels >= classes)]):
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, as there are {classes} scores, got {wrong[0]}")


def loss_of_teacher(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean divergence of the softened class probabilities from the teacher's; scores are (b, classes, ...)."""
    if scores.shape != target.shape:
        raise ValueError(
            f"the teacher answers with scores of shape {tuple(target.shape)}, the network with {tuple(scores.shape)}: "
            "both must know the same classes"
        )
    own, taught = ((values.float() / temperature).log_softmax(1) for values in (scores, target))
    return temperature**2 * F.kl_div(own, taught, reduction="none", log_target=True).sum(1).mean()


def check_teacher(teacher: nn.Module | None, model: nn.Module, distillation: float) -> None:
    """Refuse a teacher that cannot teach `model`, one that would not be used, and a share of the loss without one."""
    if teacher is None and distillation:
        raise ValueError("a recipe with distillation needs a teacher: pass teacher=, as a rule the dense network")
    if teacher is None:
        return
    if not isinstance(teacher, nn.Module):
        raise ValueError(f"teacher must be an nn.Module, got {type(teacher).__name__}: wrap it in a module")
    if not distillation:
        raise ValueError("the teacher would not be used: set distillation in the recipe, as in distillation=0.9")
    if _storages(teacher) & _storages(model):
        raise ValueError("the teacher shares weights with the network: pass a copy, copy.deepcopy(model)")
    if device_of(teacher) != device_of(model):
        raise ValueError(
            f"the teacher is on {device_of(teacher)} and the network on {device_of(model)}: move it, teacher.to(...)"
        )
    taught, own = _types(teacher), _types(model)
    with autocast(device_of(model)):
        casts = torch.is_autocast_enabled(device_of(model).type)  # all but float64
    if taught and own and taught.isdisjoint(own) and not (casts and torch.float64 not in taught | own):
        raise ValueError(
            f"the teacher has weights of type {_type_names(taught)} and the network of {_type_names(own)}: convert it, "
            f"teacher.to({min(own, key=str)})"
        )


def _storages(module: nn.Module) -> set[tuple[torch.device, int]]:
    """Where the parameters and buffers lie in memory, except those that take none."""
    tensors = chain(module.parameters(), module.buffers())
    places = {(tensor.device, tensor.untyped_storage().data_ptr()) for tensor in tensors}
    return {(device, address) for device, address in places if address}


def _types(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}


def _type_names(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types))
