"""One row each: convolution, dense layers, embedding, pooling, elementwise work, normalization."""

from __future__ import annotations

from typing import Unpack

from hwmodel.layer_row import (
    DEPTHWISE,
    DRAM_BURST_BYTES,
    PRODUCT,
    VECTOR,
    Row,
    VectorOptions,
    WeightOptions,
    make_row,
)
from hwmodel.windows import require_positive, windows_of

LAYER_NORM_OPS = 7  # two for the sums, one to centre, two to scale by the deviation, scale, offset


def conv(
    name: str,
    *,
    height: int,
    width: int,
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    batch: int = 1,
    stride: int | tuple[int, int] = 1,
    padding: str | int = "same",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = False,
    **options: Unpack[WeightOptions],
) -> Row:
    """A 2-D convolution as `groups` products of (B·OH·OW) x (kh·kw·Cin/g) x (Cout/g).

    OH = floor((H + 2p - d·(kh - 1) - 1) / s) + 1, or ceil(H / s) for `padding="same"`; `height` and
    `width` are the input's (1 for a convolution over time). `options`: `layer_row.WeightOptions`.
    Raises ValueError for sizes that are not positive integers, channels that `groups` does not
    divide, a kernel larger than its padded input, and as `layer_row.make_row` does.
    """
    sizes = require_positive(
        name,
        batch=batch,
        height=height,
        width=width,
        in_channels=in_channels,
        out_channels=out_channels,
        groups=groups,
    )
    for field in ("in_channels", "out_channels"):
        if sizes[field] % groups:
            raise ValueError(
                f"row {name!r}: {field} {sizes[field]} is not a multiple of groups {groups}; "
                "choose groups that divide both channel counts"
            )
    window = windows_of(name, height, width, kernel, stride, padding, dilation)
    m = batch * window.out_height * window.out_width
    k = window.kernel_height * window.kernel_width * (in_channels // groups)
    return make_row(
        name,
        PRODUCT,
        batch=batch,
        m=m,
        k=k,
        n=out_channels // groups,
        groups=groups,
        input_words=batch * window.touched * (in_channels // groups),
        output_words=m * out_channels,
        weights=k * out_channels,
        bias_words=out_channels if bias else 0,
        kernel_height=window.kernel_height,
        kernel_width=window.kernel_width,
        out_height=window.out_height,
        **options,
    )


def transposed_conv(
    name: str,
    *,
    height: int,
    width: int,
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    batch: int = 1,
    padding: str = "same",
    bias: bool = False,
    **options: Unpack[WeightOptions],
) -> Row:
    """A transposed convolution as one product of (B·H·W) x Cin x (kh·kw·Cout).

    Every input pixel is spread over the kernel's outputs, whose overlaps are added where partial
    sums are kept; no inserted zero is multiplied. H·s outputs a side for `padding="same"`,
    H·s + max(0, kh - s) for "valid". Raises as `conv` does.
    """
    require_positive(
        name,
        batch=batch,
        height=height,
        width=width,
        in_channels=in_channels,
        out_channels=out_channels,
    )
    if padding not in ("same", "valid"):
        raise ValueError(f"row {name!r}: padding must be 'same' or 'valid', got {padding!r}")
    window = windows_of(name, height, width, kernel, stride, "same")
    out_height, out_width = height * window.stride_height, width * window.stride_width
    if padding == "valid":
        out_height += max(0, window.kernel_height - window.stride_height)
        out_width += max(0, window.kernel_width - window.stride_width)
    m, n = batch * height * width, window.kernel_height * window.kernel_width * out_channels
    return make_row(
        name,
        PRODUCT,
        batch=batch,
        m=m,
        k=in_channels,
        n=n,
        input_words=m * in_channels,
        output_words=batch * out_height * out_width * out_channels,
        weights=in_channels * n,
        bias_words=out_channels if bias else 0,
        **options,
    )


def depthwise(
    name: str,
    *,
    height: int,
    width: int,
    channels: int,
    kernel: int | tuple[int, int],
    batch: int = 1,
    stride: int | tuple[int, int] = 1,
    padding: str | int = "same",
    dilation: int | tuple[int, int] = 1,
    depth_multiplier: int = 1,
    bias: bool = False,
    **options: Unpack[WeightOptions],
) -> Row:
    """A depthwise convolution: `channels` products with K = kh·kw and N = `depth_multiplier`, or
    B·OH·OW·C·kh·kw·N vector operations where the accelerator runs it on its vector unit. Raises as
    `conv` does."""
    require_positive(
        name,
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        depth_multiplier=depth_multiplier,
    )
    window = windows_of(name, height, width, kernel, stride, padding, dilation)
    m = batch * window.out_height * window.out_width
    k = window.kernel_height * window.kernel_width
    outputs = channels * depth_multiplier
    return make_row(
        name,
        DEPTHWISE,
        batch=batch,
        m=m,
        k=k,
        n=depth_multiplier,
        groups=channels,
        input_words=batch * window.touched,
        output_words=m * outputs,
        vector_ops=m * k * outputs,
        weights=k * outputs,
        bias_words=outputs if bias else 0,
        kernel_height=window.kernel_height,
        kernel_width=window.kernel_width,
        out_height=window.out_height,
        **options,
    )


def dense(
    name: str,
    *,
    in_features: int,
    out_features: int,
    batch: int = 1,
    positions: int = 1,
    bias: bool = False,
    **options: Unpack[WeightOptions],
) -> Row:
    """A fully connected layer: one product of (B·positions) x in x out, where `positions` vectors
    of each example (a sequence, an image) share the weights. Raises as `conv` does."""
    require_positive(
        name, batch=batch, positions=positions, in_features=in_features, out_features=out_features
    )
    m = batch * positions
    return make_row(
        name,
        PRODUCT,
        batch=batch,
        m=m,
        k=in_features,
        n=out_features,
        input_words=m * in_features,
        output_words=m * out_features,
        weights=in_features * out_features,
        bias_words=out_features if bias else 0,
        **options,
    )


def embedding(
    name: str,
    *,
    vocabulary: int,
    features: int,
    lookups: int = 1,
    batch: int = 1,
    **options: Unpack[WeightOptions],
) -> Row:
    """`lookups` rows of a table per example, read from DRAM at random: no operations, and
    B·lookups·max(row bytes, burst) bytes whatever the vocabulary, which only storage counts.

    Raises as `conv` does.
    """
    require_positive(name, batch=batch, vocabulary=vocabulary, features=features, lookups=lookups)
    row = make_row(
        name,
        VECTOR,
        batch=batch,
        input_words=0,
        output_words=batch * lookups * features,
        weights=vocabulary * features,
        **options,
    )
    row_bytes = -(-features * (row.index_bits or row.weight_bits) // 8)
    return row._replace(gather_bytes=batch * lookups * max(row_bytes, DRAM_BURST_BYTES))


def pool(
    name: str,
    *,
    height: int,
    width: int,
    channels: int,
    kernel: int | tuple[int, int],
    batch: int = 1,
    stride: int | tuple[int, int] | None = None,
    padding: str | int = "valid",
    **options: Unpack[VectorOptions],
) -> Row:
    """Maximum or average pooling: one vector operation per word of each window.

    `stride` is the kernel's size unless given. Global pooling is a kernel of (height, width).
    Raises as `conv` does.
    """
    require_positive(name, batch=batch, height=height, width=width, channels=channels)
    window = windows_of(name, height, width, kernel, kernel if stride is None else stride, padding)
    outputs = batch * window.out_height * window.out_width * channels
    return make_row(
        name,
        VECTOR,
        batch=batch,
        input_words=batch * window.touched * channels,
        output_words=outputs,
        vector_ops=outputs * window.kernel_height * window.kernel_width,
        **options,
    )


def elementwise(
    name: str,
    *,
    elements: int,
    n_inputs: int = 2,
    batch: int = 1,
    ops_per_element: int | None = None,
    **options: Unpack[VectorOptions],
) -> Row:
    """Combine `n_inputs` tensors of `elements` words per example into one, word by word.

    `ops_per_element` vector operations a word, max(1, n_inputs - 1) unless given: one for an
    activation function, one for an addition of two tensors. Raises as `conv` does.
    """
    if ops_per_element is None:
        ops_per_element = max(1, n_inputs - 1)
    require_positive(
        name, batch=batch, elements=elements, n_inputs=n_inputs, ops_per_element=ops_per_element
    )
    return make_row(
        name,
        VECTOR,
        batch=batch,
        input_words=batch * elements * n_inputs,
        output_words=batch * elements,
        vector_ops=batch * elements * ops_per_element,
        **options,
    )


def normalization(
    name: str,
    *,
    elements: int,
    channels: int,
    batch: int = 1,
    ops_per_element: int = 2,
    **options: Unpack[VectorOptions],
) -> Row:
    """Normalization at inference, not folded into its neighbours: a multiply and an add a word.

    One that takes its statistics from the example itself needs more `ops_per_element`, as many as
    `LAYER_NORM_OPS`. Counts the 2·channels trained parameters (scale and offset). Raises as `conv`
    does.
    """
    require_positive(
        name, batch=batch, elements=elements, channels=channels, ops_per_element=ops_per_element
    )
    return make_row(
        name,
        VECTOR,
        batch=batch,
        input_words=batch * elements,
        output_words=batch * elements,
        vector_ops=ops_per_element * batch * elements,
        bias_words=2 * channels,
        **options,
    )
