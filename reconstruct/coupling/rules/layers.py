"""Rules of operations that compute: products, convolutions, norms, reductions, attention, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hfp.layers.patches import per_dimension
from hfp.reconstruct.coupling.rules.labels import Line, Lines
from hfp.reconstruct.coupling.rules.registry import Operation, broadcast, every, opaque, pointwise, rule

_SPATIAL_DIMS = {
    "max_pool2d_with_indices": 2, "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "max_pool3d_with_indices": 3,
    "_adaptive_avg_pool2d": 2, "_adaptive_avg_pool3d": 3, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3,
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3, "upsample_linear1d": 1,
    "upsample_bilinear2d": 2, "upsample_bicubic2d": 2, "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2,
    "_upsample_nearest_exact1d": 1, "_upsample_nearest_exact2d": 2, "_upsample_nearest_exact3d": 3,
    "upsample_trilinear3d": 3, "reflection_pad1d": 1, "reflection_pad2d": 2, "reflection_pad3d": 3,
    "replication_pad1d": 1, "replication_pad2d": 2, "replication_pad3d": 3,
}  # fmt: skip


@rule("mm", "bmm")
def product(op: Operation) -> Lines:
    """The operation multiplies `[.., i, k]` and `[.., k, j]`, which lose the same indices of k."""
    return _product(op, *op.args[:2])


@rule("addmm", "baddbmm")
def product_plus(op: Operation) -> Lines:
    """The operation adds a product and a tensor that is broadcast to it."""
    lines = list(_product(op, *op.args[1:3]))
    for offset, (line, size) in enumerate(
        zip(reversed(op.lines(op.args[0])), reversed(op.args[0].shape), strict=True), 1
    ):
        if size == op.outputs[0].shape[-offset]:
            lines[-offset] = op.unify(lines[-offset], line, "it is added to a tensor of fixed size")
        else:
            op.fix(line, "it is broadcast")
    return tuple(lines)


def _product(op: Operation, left: Tensor, right: Tensor) -> Lines:
    rows, columns = op.lines(left), op.lines(right)
    op.unify(rows[-1], columns[-2], "it is multiplied with a dimension of fixed size")
    if left.dim() == 2:
        return rows[0], columns[1]
    return op.unify(rows[0], columns[0], "it runs beside a dimension of fixed size"), rows[1], columns[2]


@rule("_grouped_mm")
def grouped_product(op: Operation) -> Lines | list[Lines]:
    """The operation multiplies rows `[.., k]` and `[experts, k, j]`; which rows belong to which expert is given.

    Its kernels read memory in pieces of 16 bytes, so that the sizes along which the memory lies stay multiples.
    """
    left, right = op.args[:2]
    if (left.dim(), right.dim()) != (2, 3):
        return opaque(op)
    rows, columns = op.without(left, [0], "rows are given to experts"), op.lines(right)
    op.fix(columns[0], "experts are chosen by number")
    op.unify(rows[1], columns[1], "it is multiplied with a dimension of fixed size")
    along = columns[2] if right.stride(-1) == 1 else columns[1]
    for line, each in ((rows[1], left), (along, right)):
        op.labels.align(line, max(1, 16 // each.element_size()))
    return (None, columns[2])


@rule("histc", "bincount")
def counts(op: Operation) -> list[Lines]:
    """The operation counts the entries of a tensor by their values."""
    for tensor in op.tensors:
        op.without(tensor, range(tensor.dim()), f"{op.name} counts what this dimension holds")
    return [(None,) * output.dim() for output in op.outputs]


@rule("mv")
def matrix_vector(op: Operation) -> Lines:
    """The operation multiplies `[i, k]` and `[k]`, which lose the same indices of k."""
    rows, column = op.lines(op.args[0]), op.lines(op.args[1])
    op.unify(rows[1], column[0], "it is multiplied with a dimension of fixed size")
    return (rows[0],)


@rule("dot", "vdot")
def dot(op: Operation) -> Lines:
    """The operation multiplies `[k]` and `[k]`, which lose the same indices."""
    op.unify(op.lines(op.args[0])[0], op.lines(op.args[1])[0], "it is multiplied with a dimension of fixed size")
    return ()


@rule("linear")
def linear(op: Operation) -> Lines:
    """The operation computes `[.., in] x [out, in] + [out]`."""
    tensor, weight, bias = (*op.args, None)[:3]
    out, read = op.lines(weight)
    op.unify(op.lines(tensor)[-1], read, "it reads a dimension of fixed size")
    if bias is not None:
        out = op.unify(out, op.lines(bias)[0], "it is added to a tensor of fixed size")
    return (*op.lines(tensor)[:-1], out)


@rule("convolution")
def convolution(op: Operation) -> Lines:
    """The operation mixes channels within groups, and slides a window over the other dimensions."""
    image, weight, bias, _, _, _, transposed, _, groups = op.args[:9]
    stride, padding = (per_dimension(each, image.dim() - 2) for each in op.args[3:5])
    lines, kernel = list(op.lines(image)), op.lines(weight)
    for dim in range(2, image.dim()):
        op.fix(kernel[dim], "it is a kernel's window")
        if weight.shape[dim] > 1 or stride[dim - 2] > 1 or padding[dim - 2] > 0:
            op.fix(lines[dim], "a convolution slides over this dimension")
            lines[dim] = None
    read, out = (kernel[0], kernel[1]) if transposed else (kernel[1], kernel[0])
    if groups == 1:
        op.unify(lines[1], read, "it reads channels of a fixed number")
    else:
        out = _grouped(op, lines[1], read, out, image.shape[1], op.outputs[0].shape[1])
    if bias is not None:
        out = op.unify(out, op.lines(bias)[0], "it is added to a tensor of fixed size")
    op.notes.channels = (lines[1], out)
    return (lines[0], out, *lines[2:])


def _grouped(op: Operation, entering: Line, read: Line, out: Line, inputs: int, outputs: int) -> Line:
    """Tie a grouped convolution's channels to its groups and to the places in them, and return the line of its
    outputs.
    """
    count, transposed = op.args[8], op.args[6]
    group = op.labels.fresh(count)
    each_in, each_out = inputs // count, outputs // count
    place_in = op.labels.fresh(each_in) if transposed else read
    place_out = out if transposed else op.labels.fresh(each_out)
    outer_first = count >= 4 or min(each_in, each_out) == 1
    written = op.labels.fresh(outputs) if transposed else out
    op.labels.tie(read if transposed else entering, (group, place_in), (count, each_in), op.where, outer_first)
    op.labels.tie(written, (group, place_out), (count, each_out), op.where, outer_first)
    if transposed:
        op.unify(entering, read, "it reads channels of a fixed number")
    op.notes.groups = group
    if group is not None:
        op.notes.stated.append((count, group))
    return written


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_native_batch_norm_legit_functional", "_batch_norm_with_update", "_batch_norm_no_update",
)  # fmt: skip
def batch_norm(op: Operation) -> list[Lines]:
    """The operation normalises each channel (dimension 1) by itself."""
    lines = list(op.lines(op.args[0]))
    line = lines[1]
    for parameter in (value for value in op.args[1:5] if isinstance(value, Tensor)):
        line = op.unify(line, op.lines(parameter)[0], "it normalises channels of a fixed number")
    lines[1] = line
    training = op.name != "_native_batch_norm_legit_no_training" and op.argument(5, "training", False) is True
    op.notes.reduces = training and any(other is not None for dim, other in enumerate(lines) if dim != 1)
    size = op.args[0].shape[1]
    return [
        tuple(lines),
        *((line,) if tuple(output.shape) == (size,) else (None,) * output.dim() for output in op.outputs[1:]),
    ]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(op: Operation) -> list[Lines]:
    """The operation normalises the last dimensions together."""
    tensor, shape = op.args[:2]
    lines = list(op.lines(tensor))
    for parameter in (value for value in op.args[2:4] if isinstance(value, Tensor)):
        for offset in range(1, len(shape) + 1):
            line = op.lines(parameter)[-offset]
            lines[-offset] = op.unify(lines[-offset], line, "it normalises a dimension of fixed size")
    last = lines[-len(shape) :]
    op.notes.reduces = any(line is not None for line in last)
    op.notes.stated.extend(zip(shape, last, strict=True))
    statistics = (*lines[: -len(shape)], *(None for _ in shape))
    return [tuple(lines), *(statistics for _ in op.outputs[1:])]


@rule("native_group_norm")
def group_norm(op: Operation) -> list[Lines]:
    """The operation normalises consecutive channels together."""
    tensor, weight, bias, _, channels, _, groups = op.args[:7]
    lines = list(op.lines(tensor))
    for parameter in (weight, bias):
        if parameter is not None:
            lines[1] = op.unify(lines[1], op.lines(parameter)[0], "it normalises channels of a fixed number")
    op.notes.reduces = any(line is not None for line in lines[1:])
    group: Line = None
    if lines[1] is not None and groups > 1:
        group, place = op.labels.fresh(groups), op.labels.fresh(channels // groups)
        op.labels.tie(lines[1], (group, place), (groups, channels // groups), op.where, groups >= 4)
        op.notes.groups = group
        op.notes.stated.append((groups, group))
    return [tuple(lines), *((lines[0], group) for _ in op.outputs[1:])]


@rule("_weight_norm_interface")
def weight_norm(op: Operation) -> list[Lines]:
    """The operation computes `g v / |v|`; the norm runs over the indices that are left of all dimensions but one."""
    direction, magnitude = op.args[:2]
    lines, dim = list(op.lines(direction)), op.argument(2, "dim", 0) % direction.dim()
    lines[dim] = op.unify(lines[dim], op.lines(magnitude)[dim], "it is scaled by a tensor of fixed size")
    op.notes.reduces = any(line is not None for other, line in enumerate(lines) if other != dim)
    norms: list[Line] = [None] * op.outputs[1].dim()
    norms[dim if len(norms) > 1 else 0] = lines[dim]
    return [tuple(lines), tuple(norms)]


@rule("mean", "sum", "nansum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
def statistic(op: Operation) -> list[Lines]:
    """The operation computes a statistic over dimensions, of the indices that are left."""
    dims = _reduced(op, 2 if op.name in ("linalg_vector_norm", "norm") else 1)
    op.notes.reduces = any(op.lines(op.args[0])[dim] is not None for dim in dims)
    return every(op, _rest(op, op.lines(op.args[0]), dims))


@rule("prod", "logsumexp", "any", "all", "median", "argmax", "argmin")
def choice(op: Operation) -> list[Lines]:
    """The operation chooses among the indices of a dimension, and would choose another if some were gone."""
    dims = _reduced(op, 1)
    return every(op, _rest(op, op.without(op.args[0], dims, f"{op.name} is taken over this dimension"), dims))


@rule("amax", "amin")
def extreme(op: Operation) -> list[Lines]:
    """The operation finds the largest or smallest over dimensions, of the indices that are left.

    One factor of a reshaped dimension stays, as the pieces of a maxout do.
    """
    dims = _reduced(op, 1)
    lines = op.lines(op.args[0])
    factors = [dim for dim in dims if op.labels.is_factor(lines[dim])]
    lines = op.without(op.args[0], factors, f"{op.name} is taken over this dimension")
    op.notes.reduces = any(lines[dim] is not None for dim in dims)
    return every(op, _rest(op, lines, dims))


@rule("max", "min")
def extreme_or_pointwise(op: Operation) -> list[Lines]:
    """The operation finds the largest or smallest of two tensors, or over dimensions.

    It may also return the number of the index that was found.
    """
    if len(op.tensors) > 1:
        return pointwise(op)
    found = extreme(op)
    if len(op.outputs) > 1:
        op.notes.choice = op.lines(op.args[0])[_reduced(op, 1)[0]]
    return found


def _reduced(op: Operation, position: int) -> list[int]:
    dims = op.argument(position, "dim")
    rank = op.args[0].dim()
    if isinstance(dims, int):
        dims = [dims]
    return [dim % rank for dim in dims] if dims else list(range(rank))


def _rest(op: Operation, lines: Lines, dims: Sequence[int]) -> Lines:
    if op.outputs[0].dim() == len(lines):
        return tuple(None if dim in dims else line for dim, line in enumerate(lines))
    return tuple(line for dim, line in enumerate(lines) if dim not in dims)


@rule("_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "cummax", "cummin")
def along(op: Operation) -> list[Lines]:
    """Every result along a dimension depends on the whole dimension."""
    dim = op.argument(1, "dim", -1)
    return every(op, op.without(op.args[0], [dim], f"{op.name.strip('_')} runs over this dimension"))


@rule("topk")
def topk(op: Operation) -> list[Lines]:
    """The operation picks the largest along a dimension."""
    return every(op, op.without(op.args[0], [op.argument(2, "dim", -1)], "the largest of this dimension are picked"))


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
def attention(op: Operation) -> list[Lines]:
    """The operation attends with `[.., heads, queries, e]`, `[.., heads, keys, e]` and `[.., heads, keys, v]`.

    It scales by e unless it is told otherwise.
    """
    query, key, value = (op.lines(tensor) for tensor in op.args[:3])
    lead = [
        op.unify(op.unify(*pair[:2], "attention of fixed size"), pair[2], "attention of fixed size")
        for pair in zip(query[:-2], key[:-2], value[:-2], strict=True)
    ]
    inner = op.unify(query[-1], key[-1], "attention of fixed size")
    if op.kwargs.get("scale") is None:
        op.fix(inner, "attention is scaled by the size of this dimension")
    for line in (key[-2], value[-2]):
        op.fix(line, "attention is a softmax over this dimension")
    for mask in op.tensors[3:]:
        op.without(mask, range(mask.dim()), "it masks attention")
        for offset in range(3, mask.dim() + 1):
            if mask.shape[-offset] > 1:
                op.fix(lead[2 - offset], "attention is masked by a tensor of fixed size")
    return [(*lead, query[-2], value[-1]), *((None,) * output.dim() for output in op.outputs[1:])]


@rule(*_SPATIAL_DIMS)
def spatial(op: Operation) -> list[Lines]:
    """The operation slides a window over the last dimensions."""
    rank = op.args[0].dim()
    dims = range(rank - _SPATIAL_DIMS[op.name], rank)
    return every(op, op.without(op.args[0], dims, f"{op.name.strip('_')} runs over this dimension"))


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(op: Operation) -> Lines:
    """The operation looks pixels up at places; heads may run beside the batch, each with places of its own."""
    image, grid = op.args[:2]
    each = op.without(grid, range(1, grid.dim()), "it holds the places of a look-up")[0]
    lines = op.without(image, range(2, image.dim()), "pixels are looked up by place")
    return (op.unify(lines[0], each, "it runs beside a dimension of fixed size"), *lines[1:])


@rule("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool")
def regions(op: Operation) -> list[Lines]:
    """The operation cuts parts out of images, by place.

    Channels pass on, but for kinds that choose channels by place.
    """
    image, places = op.args[:2]
    op.without(places, range(places.dim()), "it holds the places of a look-up")
    chosen = (1, 2, 3) if op.name.startswith("ps_") else (2, 3)
    lines = op.without(image, (0, *chosen), "regions of images are looked up by place")
    return [(None, lines[1], None, None) if output.dim() == 4 else (None,) * output.dim() for output in op.outputs]


@rule("deform_conv2d")
def deformable(op: Operation) -> Lines:
    """The operation is a convolution whose window is moved at every place."""
    image, weight, offset, mask, bias = op.args[:5]
    groups, offset_groups = op.args[11:13]
    for tensor in (offset, mask):
        op.without(tensor, range(tensor.dim()), "it holds the places of a look-up")
    lines = op.without(image, (2, 3), "a convolution slides over this dimension")
    kernel = op.without(weight, (2, 3), "it is a kernel's window")
    if groups > 1 or offset_groups > 1:
        op.fix(lines[1], "its groups have a fixed size")
        op.fix(kernel[0], "its groups have a fixed size")
        op.fix(kernel[1], "its groups have a fixed size")
        return (lines[0], None, None, None)
    op.unify(lines[1], kernel[1], "it reads channels of a fixed number")
    out = op.unify(kernel[0], op.lines(bias)[0], "it is added to a tensor of fixed size")
    return (lines[0], out, None, None)


@rule("_trilinear")
def trilinear(op: Operation) -> Lines:
    """The operation sums the product of three tensors, each with new dimensions of size 1, over dimensions."""
    lines = [_expanded(op.lines(tensor), new) for tensor, new in zip(op.args[:3], op.args[3:6], strict=True)]
    sizes = [_expanded(tuple(tensor.shape), new) for tensor, new in zip(op.args[:3], op.args[3:6], strict=True)]
    summed = op.args[6]
    found: list[Line] = []
    for dim in range(len(lines[0])):
        size = max(each[dim] or 1 for each in sizes)
        wide = [line[dim] for line, each in zip(lines, sizes, strict=True) if (each[dim] or 1) == size]
        line = wide[0]
        for other in wide[1:]:
            line = op.unify(line, other, "it is multiplied with a dimension of fixed size")
        if dim not in summed:
            found.append(line)
    return tuple(found)


def _expanded(values: Sequence[Any], new: Sequence[int]) -> list[Any]:
    found = list(values)
    for dim in sorted(new):
        found.insert(dim, None)
    return found


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(op: Operation) -> Lines:
    """Every result along a transformed dimension depends on the whole dimension."""
    return op.without(op.args[0], op.args[1], "a Fourier transform runs over this dimension")


@rule("_cdist_forward")
def distances(op: Operation) -> Lines:
    """The operation turns `[.., m, k]` and `[.., n, k]` into `[.., m, n]`; both lose the same indices of k."""
    first, second = (op.lines(tensor) for tensor in op.args[:2])
    op.unify(first[-1], second[-1], "distances are taken to a tensor of fixed size")
    lead = [
        op.unify(*pair, "it runs beside a dimension of fixed size") for pair in zip(first[:-2], second, strict=False)
    ]
    return (*lead, first[-2], second[-2])


@rule("_prelu_kernel")
def prelu(op: Operation) -> Lines:
    """The operation has a slope for every channel, already in the shape of the image."""
    return broadcast(op, op.args[:2], op.outputs[0].shape)
