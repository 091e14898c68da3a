"""Graphs that were wrong once, as small as they still were: a name, and the plan that was printed."""

from __future__ import annotations

from torchquilt.testing.graphs import Plan, Step

_STATIC = ("static_int8_per_channel",)
_DYNAMIC = ("dynamic_int8_per_channel",)

REGRESSIONS: dict[str, Plan] = {
    "a cast behind a product": Plan((2, 5, 8), (Step("matmul"), Step("cast")), ("static_int8",)),
    "a cast before a convolution": Plan(
        (2, 6, 7, 7), (Step("square_linear"), Step("to"), Step("conv2d_relu6")), _STATIC
    ),
    "a cast before a reshape": Plan(
        (2, 6, 7, 7), (Step("square_linear"), Step("to"), Step("reshape")), _STATIC
    ),
    "a scaled product": Plan((4, 8), (Step("addmm_clamp", way=3),), _DYNAMIC),
    "a product and its copy": Plan(
        (2, 7, 19), (Step("square_linear"), Step("linear"), Step("dropout")), _DYNAMIC
    ),
    "a dynamic convolution behind zeros": Plan((1, 8, 5, 5), (Step("pad_conv2d_relu6"),), _DYNAMIC),
    "an image in channels_last": Plan((2, 4, 6, 6), (Step("tanh"),), _DYNAMIC, channels_last=True),
    "a flip of an image in channels_last": Plan(
        (1, 8, 5, 5), (Step("flip", ask=1),), _DYNAMIC, channels_last=True
    ),
    "a join of an image in channels_last": Plan(
        (1, 8, 5, 5), (Step("column_stack", ask=1),), _DYNAMIC, channels_last=True
    ),
    "a normalized image in channels_last": Plan(
        (1, 8, 5, 5), (Step("layer_norm"),), _DYNAMIC, channels_last=True
    ),
    "a padded image in channels_last": Plan(
        (1, 8, 5, 5), (Step("pad_conv2d_relu6"),), _STATIC, channels_last=True
    ),
    "a linear of an image in channels_last": Plan(
        (1, 8, 5, 5), (Step("linear_hardtanh", ask=1),), _STATIC, channels_last=True
    ),
    "an image in channels_last that is shuffled": Plan(
        (1, 4, 6, 6), (Step("pixel_shuffle"),), _STATIC, channels_last=True
    ),
    "a convolution of an image in channels_last and a shuffle": Plan(
        (1, 4, 6, 6),
        (Step("pad_conv2d_clamp", way=5), Step("pixel_shuffle", back=(1, 3, 4))),
        _STATIC,
        channels_last=True,
    ),
    "a dynamic linear in a part of its own, before a convolution": Plan(
        (1, 6, 7, 7), (Step("square_linear"), Step("conv2d"), Step("pixel_shuffle", back=(1, 0, 0))), _DYNAMIC
    ),
    "a dynamic linear in a part of its own, before another image": Plan(
        (1, 6, 7, 7),
        (Step("square_linear"), Step("pixel_shuffle"), Step("conv_transpose2d", back=(1, 0, 0))),
        _DYNAMIC,
    ),
    "images of six operators in channels_last": Plan(
        (1, 4, 6, 6),
        (
            Step("conv_bn_relu", 4, (0, 3, 4), 1),
            Step("again", 2, (0, 0, 0), 2),
            Step("as_signal", 4, (1, 2, 0), 0),
            Step("vstack", 1, (1, 1, 1), 1),
            Step("pad_conv2d_relu6", 0, (0, 3, 2), 1),
        ),
        ("static_int8",),
        channels_last=True,
        seed=40081,
    ),
    "two dynamic convolutions of one tensor": Plan(
        (1, 8, 5, 5), (Step("pointwise"), Step("conv_same", back=(1, 0, 0)), Step("add")), _DYNAMIC
    ),
    "a sum of each sample in float": Plan((4, 8), (Step("addmm_relu6", way=2),), _STATIC, seed=1840),
    "an unbatched pool of images behind a signal": Plan(
        (2, 5, 8), (Step("conv_transpose1d_relu", back=(-1, 0, 0)), Step("max_pool2d")), _STATIC, seed=55260
    ),
    "the inverse of what is nearly zero": Plan(
        (1, 8, 5, 5),
        (Step("conv_bn_relu"), Step("pad_conv2d_relu", back=(-1, 3, 2)), Step("rsub", way=2)),
        ("static_int8",),
        seed=23287,
    ),
    "a transposed vector": Plan((2, 6, 7, 7), (Step("square_linear"), Step("reshape"), Step("t")), _STATIC),
}
