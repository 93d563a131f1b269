"""The operations that `topoprune.channels` follows: their names, by what they do to channels, and two equivalents."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MOVES = frozenset(
    "view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes chunk unbind unsqueeze "
    "squeeze cat stack clone alias detach _to_copy contiguous narrow flip roll repeat index index_select unflatten "
    "flatten pixel_shuffle pixel_unshuffle channel_shuffle constant_pad_nd movedim lift_fresh _reshape_alias "
    "native_channel_shuffle".split()
)
REDUCTIONS = frozenset(
    "mean sum amax amin max min var std norm linalg_vector_norm logsumexp prod argmax argmin any all median "
    "nanmedian kthvalue".split()
)
WITHIN_CHANNELS = frozenset(
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d "
    "grid_sampler_3d max_unpool2d max_unpool3d mkldnn_max_pool2d roi_align roi_pool".split()
)
ALONG_ONE_AXIS = frozenset(
    "_softmax _log_softmax softmax log_softmax cumsum cumprod cummax cummin logcumsumexp sort topk".split()
)
ELEMENTWISE = frozenset(
    "hardswish hardsigmoid hardtanh leaky_relu elu celu silu mish gelu relu softplus log_sigmoid_forward rrelu "
    "native_dropout bernoulli empty_like zeros_like ones_like full_like rand_like randn_like masked_fill lerp "
    "_prelu_kernel copy threshold softshrink hardshrink glu_jvp".split()
)
BATCH_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "_batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm".split()
)
SIZES_ONLY = frozenset("new_zeros new_empty new_ones new_full".split())


class Followable(TorchFunctionMode):
    """Replace two functions by equivalents that can be followed.

    PyTorch multiplies inputs of a linear layer that are not contiguous by an expanded weight. It implements circular
    padding by writing into an empty tensor.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear and args:
            return func(args[0].contiguous(), *args[1:], **kwargs)
        if func is F.pad and "circular" in (*args[2:3], kwargs.get("mode")):
            return _padded_around(args[0], args[1] if len(args) > 1 else kwargs["pad"])
        return func(*args, **kwargs)


def _padded_around(tensor: Tensor, padding: Sequence[int]) -> Tensor:
    """Circular padding of the last axes, the last one first."""
    for i, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True)):
        axis, size = tensor.ndim - 1 - i, tensor.shape[-1 - i]
        left, right = max(before, 0), max(after, 0)  # negative padding crops
        middle = tensor.narrow(axis, left - before, size - (left - before) - (right - after))
        tensor = torch.cat([tensor.narrow(axis, size - left, left), middle, tensor.narrow(axis, 0, right)], axis)
    return tensor
