"""PyTorch's caching allocator for CUDA, played through without a GPU.

Sizes and rules are those of c10/cuda/CUDACachingAllocator.cpp: blocks of 512 bytes; requests of up to 1 MiB are cut from
segments of 2 MiB, those below 10 MiB from segments of 20 MiB, larger ones get a segment of their own in multiples of 2 MiB; the
smallest free block that is large enough is taken and split; neighbours that are free become one block again.
"""

from dataclasses import dataclass

MIB = 2**20
_BLOCK, _SMALL, _MEDIUM = 512, MIB, 10 * MIB
_SMALL_SEGMENT, _SEGMENT, _ROUND = 2 * MIB, 20 * MIB, 2 * MIB


@dataclass(eq=False)
class _Block:
    """A piece of a segment, between its neighbours there."""

    size: int
    free: "dict[_Block, None]"  # the free blocks of its pool, oldest first
    before: "_Block | None" = None
    after: "_Block | None" = None

    def absorb(self, other: "_Block") -> None:
        """The next one becomes part of this one."""
        self.size += other.size
        self.after = other.after
        if other.after:
            other.after.before = self

    def split(self, size: int) -> "_Block":
        """Keep `size` bytes; the rest is a block of its own."""
        rest = _Block(self.size - size, self.free, self, self.after)
        if self.after:
            self.after.before = rest
        self.size, self.after = size, rest
        return rest


class CachingAllocator:
    """What CUDA is asked for while blocks come and go.

    Attributes:
        reserved_bytes: of all segments; none is given back, so it is the peak, too (`max_memory_reserved`).
    """

    def __init__(self):
        self.reserved_bytes = 0
        self._small: dict[_Block, None] = {}
        self._large: dict[_Block, None] = {}

    def allocate(self, n_bytes: int) -> _Block:
        size = round_up(n_bytes)
        is_small = size <= _SMALL
        free = self._small if is_small else self._large
        block = min((each for each in free if each.size >= size), key=lambda each: each.size, default=None)
        if block:
            del free[block]
        else:
            segment = _SMALL_SEGMENT if is_small else _SEGMENT if size < _MEDIUM else round_up(size, _ROUND)
            block = _Block(segment, free)
            self.reserved_bytes += segment
        if block.size - size >= (_BLOCK if is_small else _SMALL + 1):
            free[block.split(size)] = None
        return block

    def free(self, block: _Block) -> None:
        if block.before in block.free:
            before = block.before
            before.absorb(block)
            block = before
            del block.free[block]
        if block.after in block.free:
            del block.free[block.after]
            block.absorb(block.after)
        block.free[block] = None


def round_up(n_bytes: int, unit: int = _BLOCK) -> int:
    """To whole blocks, one at least."""
    return -(-max(n_bytes, 1) // unit) * unit
