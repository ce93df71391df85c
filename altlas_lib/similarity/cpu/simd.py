"""Three instructions that Numba does not have: compare 64 bounds at once, find the lowest bit that is set, and prefetch.

Written as LLVM's vector types, which it lowers to whatever the CPU has (AVX-512, AVX2, NEON). Numba's own vectorizer
needs two to three times as long for the same comparison, because a loop cannot tell it to make a bit mask.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64


@intrinsic
def above(
    typingctx, products, scale, length, residual, offset, rival,
    at, start, local, row_scale, row_length, row_residual, row_bar, rival_bar,
):  # fmt: skip
    """For 64 columns: is `bound + offset > row_bar`, or `bound + rival > rival_bar`? Bit b of the uint64 is column b.

    bound = row_scale * scale * products + row_residual * length + row_length * residual, in float32; NaN is never above.

    Args:
        products: int32 or float32, flat; the 64 begin at `at`.
        scale, length, residual: float32, of all columns; the 64 begin at `start`.
        offset, rival: float32, of the tile's columns; the 64 begin at `local`.
        row_scale, row_length, row_residual, row_bar, rival_bar: float32.
    """
    signature = types.uint64(products, scale, length, residual, offset, rival, *[types.intp] * 3, *[types.float32] * 5)

    def generate(context, builder, signature, arguments):
        vector_of_float = ir.VectorType(ir.FloatType(), LANES)

        def load(n, position):
            array_type = signature.args[n]
            array = context.make_array(array_type)(context, builder, arguments[n])
            vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
            pointer = builder.bitcast(builder.gep(array.data, [position]), vector.as_pointer())
            loaded = builder.load(pointer)
            loaded.align = 4  # rows of a tile start anywhere
            return loaded

        def repeat(scalar):
            one = builder.insert_element(ir.Constant(vector_of_float, ir.Undefined), scalar, ir.IntType(32)(0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))

        at, start, local, *scalars = arguments[6:]
        row_scale, row_length, row_residual, row_bar, rival_bar = map(repeat, scalars)
        product = load(0, at)
        if isinstance(signature.args[0].dtype, types.Integer):
            product = builder.sitofp(product, vector_of_float)
        fused = ("contract",)  # a multiplication and an addition may become one instruction
        bound = builder.fmul(product, builder.fmul(load(1, start), row_scale, flags=fused), flags=fused)
        for factor, of_row in ((load(2, start), row_residual), (load(3, start), row_length)):
            bound = builder.fadd(bound, builder.fmul(factor, of_row, flags=fused), flags=fused)
        mask = builder.or_(
            builder.fcmp_ordered(">", builder.fadd(bound, load(4, local), flags=fused), row_bar),
            builder.fcmp_ordered(">", builder.fadd(bound, load(5, local), flags=fused), rival_bar),
        )
        return builder.bitcast(mask, ir.IntType(LANES))

    return signature, generate


@intrinsic
def lowest_bit(typingctx, mask):
    """The position of the lowest bit set in a uint64 other than 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.intp(types.uint64), generate


@intrinsic
def prefetch(typingctx, array, row):
    """Ask for the cache lines of `array[row]`, of a C-contiguous 2-D array, without waiting for them."""

    def generate(context, builder, signature, arguments):
        array_type = signature.args[0]
        array = context.make_array(array_type)(context, builder, arguments[0])
        row_stride, _ = cgutils.unpack_tuple(builder, array.strides, 2)
        byte = ir.IntType(8).as_pointer()
        start = builder.gep(builder.bitcast(array.data, byte), [builder.mul(arguments[1], row_stride)])
        hint_type = ir.FunctionType(ir.VoidType(), [byte, *[ir.IntType(32)] * 3])
        hint = cgutils.get_or_insert_function(builder.module, hint_type, "llvm.prefetch.p0")
        with cgutils.for_range_slice(builder, row_stride.type(0), row_stride, row_stride.type(64)) as (offset, _):
            flags = [ir.IntType(32)(value) for value in (0, 3, 1)]  # to read, keep it in all caches, data
            builder.call(hint, [builder.gep(start, [offset]), *flags])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate
