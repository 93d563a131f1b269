"""Names of the operations that `topoprune.channels` follows, by what they do to channels."""

MOVES = frozenset(
    "view _unsafe_view reshape permute transpose t expand slice select split split_with_sizes chunk unbind unsqueeze "
    "squeeze cat stack clone alias detach _to_copy contiguous narrow flip roll repeat index index_select unflatten "
    "flatten pixel_shuffle pixel_unshuffle channel_shuffle constant_pad_nd movedim lift_fresh _reshape_alias "
    "native_channel_shuffle".split()
)
REDUCTIONS = frozenset(
    "mean sum amax amin max min var std norm linalg_vector_norm logsumexp prod argmax argmin any all".split()
)
WITHIN_CHANNELS = frozenset(
    "max_pool2d_with_indices max_pool3d_with_indices max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d mkldnn_max_pool2d".split()
)
ALONG_ONE_AXIS = frozenset("_softmax _log_softmax softmax log_softmax cumsum cumprod sort".split())
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
