"""What each operator does to channels: one table, operator -> rule.

A rule is called as rule(walk, node) and returns the axes of the node's value, or a list of such,
for operators with several outputs. An operator without a rule freezes the channels that reach it,
by name. Nothing is guessed.
"""

from harness.engine import layer_rules, motion_rules, product_rules, value_rules
from harness.engine.axes import Rule

_ONE_TO_ONE = [
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "silu", "silu_", "gelu", "gelu_", "sigmoid",
    "sigmoid_", "tanh", "tanh_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_",
    "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "celu_", "softplus",
    "mish", "mish_", "hardshrink", "softshrink", "softsign", "log_sigmoid", "rrelu", "threshold",
    "dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "neg", "abs",
    "exp", "exp_", "log", "sqrt", "rsqrt", "square", "sin", "cos", "erf", "reciprocal", "round",
    "floor", "ceil", "sign", "logical_not", "isnan", "fill_", "zero_", "zeros_like", "ones_like",
    "empty_like", "full_like", "rand_like", "randn_like", "bernoulli", "bernoulli_", "isfinite",
    "nan_to_num", "log1p", "expm1",
]
_THE_SAME = ["clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy", "to",
             "_to_copy", "positive", "type_as", "identity"]
_ELEMENTWISE = [
    "add", "add_", "sub", "sub_", "rsub", "maximum", "minimum", "where", "addcmul", "addcdiv",
    "lerp", "fmod", "remainder", "atan2", "pow", "clamp", "clamp_", "clamp_min", "clamp_max",
    "masked_fill", "masked_fill_", "copy_", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "floor_divide",
]
_SPATIAL = [
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_linear1d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa",
]
_POOLED_PAIRS = [
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
]

# The table. Keys are operator names without namespace and overload.
RULES: dict[str, Rule] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], layer_rules.convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
                    layer_rules.transposed_convolution),
    "linear": layer_rules.linear,
    "addmm": layer_rules.vector_and_product,
    "batch_norm": layer_rules.batch_norm,
    **dict.fromkeys(["layer_norm", "rms_norm"], layer_rules.layer_norm),
    "group_norm": layer_rules.group_norm,
    "instance_norm": layer_rules.instance_norm,
    "prelu": layer_rules.prelu,
    "embedding": layer_rules.embedding,
    "bilinear": layer_rules.bilinear,
    **dict.fromkeys(["matmul", "mm", "bmm", "mv", "dot"], product_rules.matmul),
    "einsum": product_rules.einsum,
    "scaled_dot_product_attention": product_rules.attention,
    **dict.fromkeys(_ONE_TO_ONE, value_rules.follow),
    **dict.fromkeys(_THE_SAME, value_rules.same),
    **dict.fromkeys(_ELEMENTWISE, value_rules.combine),
    **dict.fromkeys(["mul", "mul_", "div", "div_"], value_rules.scaled),
    **dict.fromkeys(_SPATIAL, value_rules.spatial),
    **dict.fromkeys(_POOLED_PAIRS, value_rules.pooled_pair),
    **dict.fromkeys(["max_unpool2d", "max_unpool3d"], value_rules.unpooled),
    "grid_sampler": motion_rules.sampled,
    **dict.fromkeys(["softmax", "log_softmax", "_softmax", "cumsum", "cumprod", "index_select",
                     "unfold"], value_rules.mixing),
    **dict.fromkeys(["sort", "topk"], value_rules.ranked),
    "roll": value_rules.roll,
    **dict.fromkeys(["pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
                     "replication_pad1d", "replication_pad2d"], value_rules.pad),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "prod", "logsumexp", "var", "std"],
                    value_rules.reduce),
    "linalg_vector_norm": value_rules.vector_norm,
    **dict.fromkeys(["max", "min"], value_rules.extreme),
    **dict.fromkeys(["cat", "concat", "hstack"], motion_rules.concat),
    "stack": motion_rules.stack,
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten"],
                    motion_rules.reshape),
    **dict.fromkeys(["permute", "transpose", "swapaxes", "movedim", "t", "numpy_T", "mT",
                     "transpose_", "adjoint"], motion_rules.permute),
    "flip": motion_rules.flip,
    "unsqueeze": motion_rules.unsqueeze,
    "squeeze": motion_rules.squeeze,
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], motion_rules.expand),
    "repeat": motion_rules.repeat,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split"], motion_rules.cut_open),
    "glu": motion_rules.gated_halves,
    "unbind": motion_rules.unbind,
    **dict.fromkeys(["slice", "select", "narrow"], motion_rules.take),
    "index": motion_rules.index,
    "pixel_shuffle": motion_rules.pixel_shuffle,
    "pixel_unshuffle": motion_rules.pixel_unshuffle,
    "channel_shuffle": motion_rules.channel_shuffle,
    "im2col": motion_rules.unfold,
    "col2im": motion_rules.fold,
    **dict.fromkeys(["_assert_tensor_metadata", "_assert_async", "_assert_scalar", "new_zeros",
                     "new_ones", "new_full", "new_empty"], value_rules.nothing),
}
# Operators whose second argument is a layer's weight, where a parameter stands there.
LAYERS = frozenset(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                    "conv_transpose3d", "linear"])
