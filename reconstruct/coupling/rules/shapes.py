"""Rules of operations that arrange indices: views, slices, concatenations, padding, look-ups, constants."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hfp.reconstruct.coupling.rules.labels import Array, Line, Lines
from hfp.reconstruct.coupling.rules.registry import Operation, broadcast, every, opaque, pointwise, rule


@rule(
    "clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "dropout", "native_dropout",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "resolve_conj", "bernoulli",
    "fill", "zero", "set_data", "hardswish", "hardtanh", "relu6", "uniform", "exponential", "random",
    "cauchy", "log_normal", "geometric", "normal_functional",
)  # fmt: skip
def unchanged(op: Operation) -> list[Lines]:
    """The result has the first argument's dimensions."""
    return every(op, op.lines(op.args[0]))


@rule("copy")
def copy(op: Operation) -> Lines:
    """The operation copies a source to an aligned target, and returns the target."""
    return broadcast(op, op.args[:2], op.args[0].shape)


@rule("as_strided")
def as_strided(op: Operation) -> Lines | list[Lines]:
    """The operation is only followed where it changes strides that do not matter (of dimensions of size 1)."""
    old, new = op.args[0], op.outputs[0]
    strides = zip(old.stride(), new.stride(), new.shape, strict=False)
    if old.shape == new.shape and all(a == b for a, b, size in strides if size > 1):
        return op.lines(old)
    return opaque(op)


@rule(
    "zeros",
    "ones",
    "empty",
    "full",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "empty_strided",
    "new_empty_strided",
    "rand",
    "randn",
    "randint",
)
def constant(op: Operation) -> Lines:
    """The result has the same value everywhere, or random ones. Any index may go, if the size follows."""
    return tuple(op.labels.fresh(size) for size in op.outputs[0].shape)


@rule("normal")
def normal(op: Operation) -> Lines | list[Lines]:
    """The operation draws numbers: in a given size, or as many as there are means or deviations."""
    return pointwise(op) if op.tensors else constant(op)


@rule(
    "scalar_tensor",
    "arange",
    "linspace",
    "logspace",
    "eye",
    "randperm",
    "tril_indices",
    "triu_indices",
)
def positional(op: Operation) -> Lines:
    """The values depend on the index, so that a shorter result would hold other values."""
    return (None,) * op.outputs[0].dim()


@rule("view", "unflatten", "flatten")
def view(op: Operation) -> Lines | list[Lines]:
    """The operation regroups dimensions, row-major: runs of dimensions with equal products correspond."""
    old, new = op.args[0], op.outputs[0]
    lines = op.lines(old)
    if old.shape == new.shape:
        return lines
    if old.numel() != new.numel():  # its memory is read as numbers of another width
        return opaque(op)
    if not old.numel():  # nothing says which dimensions correspond
        for line in lines:
            op.labels.fix(line, f"{op.where}: for these inputs it regroups a tensor without entries")
        return (None,) * new.dim()
    found: list[Line] = []
    for before, after in _runs(tuple(old.shape), tuple(new.shape)):
        sizes = [new.shape[dim] for dim in after]
        kept = [(lines[dim], old.shape[dim]) for dim in before if old.shape[dim] > 1]
        wide = iter(_regroup(op, [line for line, _ in kept], [size for _, size in kept], [s for s in sizes if s > 1]))
        found.extend(next(wide) if size > 1 else None for size in sizes)
    return tuple(found)


def _runs(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the shortest runs (dimensions of old, dimensions of new) with the same number of entries."""
    i = j = 0
    while i < len(old) or j < len(new):
        before, after = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(before), j + len(after)
        while math.prod(old[dim] for dim in before) != math.prod(new[dim] for dim in after):
            if math.prod(old[dim] for dim in before) < math.prod(new[dim] for dim in after):
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        yield before, after


def _regroup(op: Operation, lines: Sequence[Line], old: Sequence[int], new: Sequence[int]) -> Lines:
    if list(old) == list(new):
        return tuple(lines)
    if len(new) == 1:
        return (op.labels.merge(lines, old, op.where),)
    whole = lines[0] if len(old) == 1 else op.labels.merge(lines, old, op.where)
    return op.labels.split(whole, new, op.where)


@rule("permute")
def permute(op: Operation) -> Lines:
    """The operation puts the dimensions in another order."""
    lines = op.lines(op.args[0])
    return tuple(lines[dim] for dim in op.args[1])


@rule("transpose")
def transpose(op: Operation) -> Lines:
    """The operation swaps two dimensions."""
    lines = list(op.lines(op.args[0]))
    first, second = op.args[1:3]
    lines[first], lines[second] = lines[second], lines[first]
    return tuple(lines)


@rule("t")
def matrix_transpose(op: Operation) -> Lines:
    """The operation swaps the dimensions of a matrix."""
    return tuple(reversed(op.lines(op.args[0])))


@rule("unsqueeze")
def unsqueeze(op: Operation) -> Lines:
    """The operation adds a dimension of size 1."""
    lines = list(op.lines(op.args[0]))
    lines.insert(op.args[1] % (len(lines) + 1), None)
    return tuple(lines)


@rule("squeeze")
def squeeze(op: Operation) -> Lines:
    """The operation drops dimensions of size 1."""
    tensor = op.args[0]
    dims = op.argument(1, "dim", list(range(tensor.dim())))
    dropped = {dim % tensor.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    sizes = enumerate(zip(op.lines(tensor), tensor.shape, strict=True))
    return tuple(line for dim, (line, size) in sizes if not (dim in dropped and size == 1))


@rule("expand")
def expand(op: Operation) -> Lines:
    """The operation copies along dimensions of size 1. Any copy may go, if the size follows."""
    tensor, shape = op.args[0], op.outputs[0].shape
    lead = len(shape) - tensor.dim()
    lines = op.lines(tensor)
    return tuple(
        lines[dim - lead] if dim >= lead and tensor.shape[dim - lead] == size else op.labels.fresh(size)
        for dim, size in enumerate(shape)
    )


@rule("repeat")
def repeat(op: Operation) -> Lines:
    """The operation puts whole copies one after the other."""
    tensor, times = op.args[:2]
    lines = op.lines(tensor)
    lead = len(times) - tensor.dim()
    found: list[Line] = []
    for dim, count in enumerate(times):
        if dim < lead or tensor.shape[dim - lead] == 1:
            found.append(op.labels.fresh(op.outputs[0].shape[dim]))
        else:
            line = lines[dim - lead]
            found.append(None if line is None else np.tile(line, count))
    return tuple(found)


@rule("select")
def select(op: Operation) -> Lines:
    """The operation picks one index of a dimension, by its number."""
    dim = op.args[1] % op.args[0].dim()
    lines = op.without(op.args[0], [dim], "one index of this dimension is picked by its number")
    return lines[:dim] + lines[dim + 1 :]


@rule("unbind")
def unbind(op: Operation) -> list[Lines]:
    """The operation returns every index of a dimension by itself."""
    dim = op.argument(1, "dim", 0) % op.args[0].dim()
    lines = op.without(op.args[0], [dim], "this dimension is taken apart by number")
    return every(op, lines[:dim] + lines[dim + 1 :])


@rule("slice")
def slice_(op: Operation) -> Lines:
    """The operation picks a range of a dimension; the ends of the range are sizes that must follow."""
    tensor = op.args[0]
    dim = op.argument(1, "dim", 0) % tensor.dim()
    lines = list(op.lines(tensor))
    line = lines[dim]
    start, end, step = op.argument(2, "start"), op.argument(3, "end"), op.argument(4, "step", 1)
    if line is not None:
        for bound in (start, end):
            if bound and 0 < bound < len(line):
                op.notes.stated.append((bound, line[:bound]))
        lines[dim] = _strided(op, line, start or 0, end, step) if step != 1 else _part(op, line[slice(start, end)])
    return tuple(lines)


def _strided(op: Operation, line: Array, start: int, end: int | None, step: int) -> Line:
    """The line of every second, third, ... index; what lies between two of them goes with the first."""
    count, rest = divmod(len(line), step)
    if 0 <= start < step and (end is None or end >= len(line)) and not rest and count > 1:
        return op.labels.split(line, (count, step), op.where, rigid=(1,))[0]
    op.fix(line, "every second, third, ... index of this dimension is picked")
    return _part(op, line[slice(start, end, step)])


def _part(op: Operation, line: Array) -> Line:
    if len(line) > 1:
        return line
    op.fix(line, "one index of this dimension is picked by its number")
    return None


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes")
def split(op: Operation) -> list[Lines]:
    """The operation returns consecutive parts of a dimension.

    They are of one size (chunks, which must stay equal) or of listed sizes.
    """
    tensor = op.args[0]
    dim = op.argument(2, "dim", 0) % tensor.dim()
    lines = op.lines(tensor)
    line = lines[dim]
    sizes = [output.shape[dim] for output in op.outputs]
    if line is None or len(sizes) == 1:
        parts: Sequence[Line] = [line] * len(sizes)
    elif "sizes" not in op.name and len(set(sizes)) == 1:
        parts = [_chunk(op, line, len(sizes), sizes[0])] * len(sizes)
    else:
        ends = np.cumsum([0, *sizes])
        pieces = [line[start:end] for start, end in zip(ends, ends[1:], strict=False)]
        op.notes.stated.extend((len(piece), piece) for piece in pieces)
        parts = [_part(op, piece) for piece in pieces]
    return [(*lines[:dim], part, *lines[dim + 1 :]) for part in parts]


def _chunk(op: Operation, line: Array, count: int, size: int) -> Line:
    if size == 1:
        op.fix(line, "this dimension is taken apart by number")
        return None
    return op.labels.split(line, (count, size), op.where, rigid=(0,))[1]


@rule("glu")
def glu(op: Operation) -> Lines:
    """The operation gates one half of a dimension by the other."""
    dim = op.argument(1, "dim", -1) % op.args[0].dim()
    lines = op.lines(op.args[0])
    line = lines[dim]
    half = None if line is None else _chunk(op, line, 2, len(line) // 2)
    return (*lines[:dim], half, *lines[dim + 1 :])


@rule("cat")
def cat(op: Operation) -> Lines:
    """The operation puts one tensor after the other."""
    tensors = [tensor for tensor in op.args[0] if tensor.dim() == op.outputs[0].dim()]
    joined = op.argument(1, "dim", 0) % op.outputs[0].dim()
    found: list[Line] = []
    for dim in range(op.outputs[0].dim()):
        lines = [op.lines(tensor)[dim] for tensor in tensors]
        if dim == joined:
            found.append(_joined(op, lines, [tensor.shape[dim] for tensor in tensors]))
            continue
        line = lines[0]
        for other in lines[1:]:
            line = op.unify(line, other, "it is concatenated with a tensor of fixed size")
        found.append(line)
    return tuple(found)


def _joined(op: Operation, lines: Sequence[Line], sizes: Sequence[int]) -> Line:
    if all(line is None for line in lines):
        return None
    parts: list[Array] = []
    for line, size in zip(lines, sizes, strict=True):
        if line is None:
            line = op.labels.numbered(size)
            op.fix(line, "it is concatenated into a longer dimension, but has a fixed size")
        parts.append(line)
    return np.concatenate(parts)


@rule("stack")
def stack(op: Operation) -> Lines:
    """The operation adds a dimension that counts the tensors."""
    tensors = op.args[0]
    lines = list(broadcast(op, tensors, tensors[0].shape))
    lines.insert(op.argument(1, "dim", 0) % op.outputs[0].dim(), None)
    return tuple(lines)


@rule("flip")
def flip(op: Operation) -> Lines:
    """The operation reverses dimensions."""
    dims = {dim % op.args[0].dim() for dim in op.args[1]}
    lines = enumerate(op.lines(op.args[0]))
    return tuple(line[::-1] if dim in dims and line is not None else line for dim, line in lines)


@rule("roll")
def roll(op: Operation) -> Lines:
    """The operation rolls dimensions by a number of steps."""
    dims = op.argument(2, "dims") or range(op.args[0].dim())
    return op.without(op.args[0], dims, "this dimension is rolled by a number of steps")


@rule("constant_pad_nd")
def pad(op: Operation) -> Lines:
    """The operation puts constants before and after a dimension; how many is a size that must follow."""
    tensor, amounts = op.args[:2]
    lines = list(op.lines(tensor))
    for pair in range(len(amounts) // 2):
        line = lines[-1 - pair]
        before, after = amounts[2 * pair : 2 * pair + 2]
        if line is None or not (before or after):
            continue
        ends = [op.labels.numbered(max(amount, 0)) for amount in (before, after)]
        op.notes.stated.extend((len(end), end) for end in ends)
        middle = line[max(-before, 0) : len(line) - max(-after, 0)]
        lines[-1 - pair] = np.concatenate([ends[0], middle, ends[1]])
    return tuple(lines)


@rule("embedding")
def embedding(op: Operation) -> Lines:
    """The operation looks up rows of a table, by number."""
    table, numbers = op.args[:2]
    lines = op.without(table, [0], "this dimension is looked up by number")
    return (*op.lines(numbers), lines[1])


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(op: Operation) -> list[Lines]:
    """The operation sums or averages a table's rows, by number."""
    lines = op.without(op.args[0], [0], "this dimension is looked up by number")
    for tensor in op.tensors[1:]:
        op.without(tensor, range(tensor.dim()), "it holds the numbers of a look-up")
    return [(None, lines[1]), *((None,) * output.dim() for output in op.outputs[1:])]


@rule("index_select")
def index_select(op: Operation) -> Lines:
    """The operation picks indices of one dimension, by number."""
    return op.without(op.args[0], [op.args[1]], "this dimension is looked up by number")


@rule("index")
def index(op: Operation) -> Lines:
    """The operation indexes by numbers or masks; dimensions that are not indexed pass on."""
    tensor, numbers = op.args[:2]
    return _looked_up(op, tensor, numbers, op.outputs[0].dim())


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(op: Operation) -> Lines:
    """The operation writes values to places, by numbers or masks.

    A mask over all dimensions with one value is pointwise.
    """
    tensor, numbers, values = op.args[:3]
    masks = [number for number in numbers if number is not None and not _is_number(number)]
    if len(numbers) == 1 and masks and masks[0].shape == tensor.shape and values.numel() == 1:
        return broadcast(op, [tensor, masks[0]], tensor.shape)
    lines = op.lines(tensor)
    used, _ = _indexed(numbers)
    width = max((number.dim() for number in numbers if number is not None and _is_number(number)), default=1)
    place = _looked_up(op, tensor, numbers, len(lines) - len(used) + width)
    for offset in range(1, min(values.dim(), len(place)) + 1):
        if values.shape[-offset] > 1:
            op.unify(place[-offset], op.lines(values)[-offset], "it is written beside a dimension of fixed size")
    return tuple(None if dim in used else line for dim, line in enumerate(lines))


def _looked_up(op: Operation, tensor: Tensor, numbers: Sequence[Tensor | None], rank: int) -> Lines:
    """Return the lines of what is found at places, which is a tensor of this rank."""
    used, adjacent = _indexed(numbers)
    lines = op.without(tensor, used, "this dimension is looked up by number")
    for number in numbers:
        if number is not None:
            op.without(number, range(number.dim()), "it holds the numbers of a look-up")
    rest = [line for dim, line in enumerate(lines) if dim not in used]
    place = used[0] if adjacent else 0
    return (*rest[:place], *[None] * (rank - len(rest)), *rest[place:])


def _indexed(numbers: Sequence[Tensor | None]) -> tuple[list[int], bool]:
    """Return the dimensions that are indexed, and whether they are next to each other.

    A mask takes as many dimensions as it has.
    """
    used: list[int] = []
    dim = 0
    for number in numbers:
        span = number.dim() if number is not None and not _is_number(number) else 1
        used += range(dim, dim + span) if number is not None else ()
        dim += span
    return used, used == list(range(used[0], used[0] + len(used)))


def _is_number(number: Tensor | None) -> bool:
    return number is not None and number.dtype not in (torch.bool, torch.uint8)


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def index_add(op: Operation) -> Lines:
    """The operation writes or adds slices to places of one dimension, by number."""
    tensor, dim, numbers = op.args[:3]
    dim %= max(tensor.dim(), 1)
    op.without(numbers, range(numbers.dim()), "it holds the numbers of a look-up")
    lines = list(op.without(tensor, [dim], "this dimension is looked up by number"))
    source = op.argument(3, "source")
    if isinstance(source, Tensor) and source.dim() == tensor.dim():
        other = op.without(source, [dim], "its indices go to places by number")
        for each in (each for each in range(tensor.dim()) if each != dim):
            lines[each] = op.unify(lines[each], other[each], "it is written beside a dimension of fixed size")
    return tuple(lines)


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(op: Operation) -> Lines:
    """The operation writes or adds entries to places of one dimension, by number.

    The other dimensions are aligned.
    """
    tensor, dim, numbers = op.args[:3]
    dim %= max(tensor.dim(), 1)
    source = op.argument(3, "src")
    aligned = [numbers, source] if isinstance(source, Tensor) and source.dim() == tensor.dim() else [numbers]
    lines = list(op.without(tensor, [dim], "this dimension is looked up by number"))
    for other in aligned:
        theirs = op.without(other, [dim], "its entries go to places by number")
        for each in (each for each in range(tensor.dim()) if each != dim):
            if other.shape[each] == tensor.shape[each]:
                lines[each] = op.unify(lines[each], theirs[each], "it is written beside a dimension of fixed size")
            else:
                op.fix(lines[each], "only a part of this dimension is written")
                op.fix(theirs[each], "it is written to a part of a dimension")
                lines[each] = None
    return tuple(lines)


@rule("masked_fill")
def masked_fill(op: Operation) -> list[Lines]:
    """The operation is pointwise, which PyTorch does not say where it writes in place or the value is a tensor."""
    return pointwise(op)


@rule("masked_scatter")
def masked_scatter(op: Operation) -> Lines:
    """The operation writes entries in order to where a mask is true.

    These are whole rows where the last dimensions agree.
    """
    tensor, mask, source = op.args[:3]
    last = source.dim() > 0 and source.shape[-1] == tensor.shape[-1]
    op.without(source, range(source.dim() - last), "its entries are written one after the other")
    lines = op.without(tensor, range(tensor.dim() - last), "entries are written to it one after the other")
    op.without(mask, range(mask.dim() - last), "it is the mask of a look-up")
    line = lines[-1] if last else None
    for other in (mask, source) if last else ():
        if other.dim() and other.shape[-1] == tensor.shape[-1]:
            line = op.unify(line, op.lines(other)[-1], "it is written beside a dimension of fixed size")
    return (*lines[:-1], line) if tensor.dim() else ()


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(op: Operation) -> Lines:
    """The operation puts pixels back to where a pooling found them."""
    image, numbers = op.args[:2]
    spatial = range(-int(op.name[-2]), 0)
    lines = list(op.without(image, spatial, "pixels are put to places"))
    other = op.without(numbers, spatial, "it holds the places of pixels")
    for dim in range(image.dim() - len(spatial)):
        lines[dim] = op.unify(lines[dim], other[dim], "it runs beside a dimension of fixed size")
    return tuple(lines)


@rule("_pack_padded_sequence")
def pack(op: Operation) -> list[Lines]:
    """The operation puts the steps of several sequences in one dimension; features pass on."""
    tensor = op.args[0]
    lines = op.without(tensor, (0, 1), "sequences are packed by their lengths")
    return [(None, *lines[2:]), *((None,) * output.dim() for output in op.outputs[1:])]


@rule("_pad_packed_sequence")
def unpack(op: Operation) -> list[Lines]:
    """The operation reverses the packing of sequences."""
    lines = op.without(op.args[0], (0,), "sequences are packed by their lengths")
    return [(None, None, *lines[1:]), *((None,) * output.dim() for output in op.outputs[1:])]


@rule("gather")
def gather(op: Operation) -> Lines:
    """The operation picks entries of one dimension, by number; the other dimensions are aligned."""
    tensor, dim, numbers = op.args[:3]
    dim %= tensor.dim()
    found: list[Line] = []
    for each, (line, other) in enumerate(zip(op.lines(tensor), op.lines(numbers), strict=True)):
        if each != dim and tensor.shape[each] == numbers.shape[each]:
            found.append(op.unify(line, other, "it is gathered by numbers of fixed size"))
        else:
            op.fix(line, "this dimension is looked up by number")
            op.fix(other, "it holds the numbers of a look-up")
            found.append(None)
    return tuple(found)


@rule("im2col")
def im2col(op: Operation) -> Lines:
    """The operation (`F.unfold`) multiplies channels and the places of a window into one dimension."""
    image = op.args[0]
    lines = op.without(image, (-1, -2), "a window slides over this dimension")
    window = math.prod(op.args[1])
    return (*lines[:-3], op.labels.merge((lines[-3], None), (image.shape[-3], window), op.where), None)


@rule("col2im")
def col2im(op: Operation) -> Lines:
    """The operation (`F.fold`) reverses `F.unfold`."""
    columns = op.args[0]
    lines = op.without(columns, (-1,), "a window slides over this dimension")
    window = math.prod(op.args[2])
    channels = op.labels.split(lines[-2], (columns.shape[-2] // window, window), op.where, rigid=(1,))[0]
    return (*lines[:-2], channels, None, None)


@rule("unfold")
def unfold(op: Operation) -> Lines:
    """The operation (`Tensor.unfold`) takes windows of one dimension."""
    return (*op.without(op.args[0], [op.args[1]], "a window slides over this dimension"), None)


@rule("pixel_shuffle")
def pixel_shuffle(op: Operation) -> Lines:
    """The operation turns channels into pixels."""
    image, factor = op.args[:2]
    lines = op.without(image, (-1, -2), "pixels are shuffled")
    sizes = (image.shape[-3] // factor**2, factor**2)
    return (*lines[:-3], op.labels.split(lines[-3], sizes, op.where, rigid=(1,))[0], None, None)


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Operation) -> Lines:
    """The operation turns pixels into channels."""
    image, factor = op.args[:2]
    lines = op.without(image, (-1, -2), "pixels are shuffled")
    return (*lines[:-3], op.labels.merge((lines[-3], None), (image.shape[-3], factor**2), op.where), None, None)


@rule("channel_shuffle")
def channel_shuffle(op: Operation) -> Lines:
    """The operation takes channels of several groups in turn."""
    image, groups = op.args[:2]
    lines = op.lines(image)
    sizes = (groups, image.shape[1] // groups)
    outer, inner = op.labels.split(lines[1], sizes, op.where)
    return (lines[0], op.labels.merge((inner, outer), sizes[::-1], op.where), *lines[2:])


@rule("tril", "triu")
def triangle(op: Operation) -> Lines:
    """The operation picks one triangle of a matrix, by position."""
    return op.without(op.args[0], (-1, -2), "a triangle of this dimension is picked")


@rule("view_as_real")
def view_as_real(op: Operation) -> Lines:
    """The operation adds a last dimension for the two parts of complex numbers."""
    return (*op.lines(op.args[0]), None)


@rule("view_as_complex")
def view_as_complex(op: Operation) -> Lines:
    """The operation reads a last dimension that holds the two parts of complex numbers."""
    return op.without(op.args[0], (-1,), "it holds the parts of complex numbers")[:-1]
