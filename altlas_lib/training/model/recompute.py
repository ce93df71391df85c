"""Less memory for more arithmetic: intermediate results that the backward pass computes again instead of finding them kept.

`keras.remat` alone is not enough: around dropout it gives silently wrong gradients on TensorFlow and PyTorch, because the
second time other masks are drawn (Keras 3.15). Here the random numbers of both times come from the same seeds.

- Recomputation: Chen et al. 2016, https://arxiv.org/abs/1604.06174
- Memory-efficient attention: Rabe & Staats 2021, https://arxiv.org/abs/2112.05682
"""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..backend import keras, serializable
from ..private import seed_generators, sublayers

layers = keras.layers
_UPDATED_WHEN_CALLED = (layers.BatchNormalization, layers.SpectralNormalization)


def _state_after(generator: keras.random.SeedGenerator, start: Any, n_draws: int) -> Any:
    return start + keras.ops.convert_to_tensor([0, n_draws], generator.state.dtype)


@contextlib.contextmanager
def _draw_from(starts: dict[keras.random.SeedGenerator, Any]) -> Iterator[Counter]:
    """Within, seed generators count on from these states, and change nothing outside; how often each was drawn from."""
    counts = Counter()

    def draw(generator: keras.random.SeedGenerator, ordered: bool = True) -> Any:
        counts[generator] += 1
        return _state_after(generator, starts[generator], counts[generator] - 1)

    for generator in starts:
        generator.next = functools.partial(draw, generator)  # in front of the class's method
    try:
        yield counts
    finally:
        for generator in starts:
            del generator.next


def recomputed(function: Callable, layer: keras.layers.Layer, *inputs: Any) -> Any:
    """`function(*inputs)`, of which only `inputs` are kept for the backward pass; same value, random numbers and gradient.

    Weights are read once and handed in as values. Read again when it is computed again, they may have been updated already:
    TensorFlow 2.21 without XLA then mixes old and new weights in about one step of ten (its dependency optimizer drops the
    order of the two).

    Args:
        function: has its variables from `layer` and its sub-layers, and updates none but seeds. Of tensors that it merely
            encloses no gradient is made.
        inputs: tensors, or lists and dictionaries of them.
    """
    weights, tensors = layer.trainable_variables, keras.tree.flatten(inputs)
    # Copies: on TensorFlow a conversion is the variable itself, whose gradient eager mode would then count twice.
    fixed = [(variable, keras.ops.copy(variable)) for variable in layer.non_trainable_variables]
    generators = seed_generators(layer)
    if any("next" in vars(generator) for generator in generators):
        return function(*inputs)  # within a layer that is computed again as a whole
    starts, counts = {generator: generator.state.value * 1 for generator in generators}, {}  # copies: states change

    def pure(*values):
        nonlocal counts
        given = keras.tree.pack_sequence_as(inputs, values[: len(tensors)])
        replaced = [*zip(weights, values[len(tensors) :], strict=True), *fixed]
        with keras.StatelessScope(replaced), _draw_from(starts) as counts:
            return function(*given)

    result = keras.remat(pure)(*tensors, *map(keras.ops.copy, weights))
    for generator, start in starts.items():  # as if the numbers had been drawn once
        generator.state.assign(_state_after(generator, start, counts[generator]))
    return result


@contextlib.contextmanager
def recompute_layers(model: keras.Model, names: Sequence[str]) -> Iterator[None]:
    """Within, layers of these names keep their inputs only for the backward pass, in steps that are traced meanwhile.

    Raises:
        ValueError: there is no such layer, or it does more when it is called than to return a value: it updates variables, as
            batch normalisation does, or adds a loss. That would be lost.
    """
    found = {layer.name: layer for layer in sublayers(model)}
    if unknown := sorted(set(names) - found.keys()):
        raise ValueError(f"recompute names {unknown}: the layers of model {model.name!r} are {sorted(found)}")
    chosen = [found[name] for name in names]
    for each in itertools.chain(*map(sublayers, chosen)):
        if isinstance(each, _UPDATED_WHEN_CALLED) or getattr(each, "activity_regularizer", None):
            problem = f"whose layer {each.name!r} ({type(each).__name__}) updates variables or adds a loss when it is called"
            raise ValueError(f"recompute names {[*names]}, {problem}, which would be lost: name layers without it")
    for layer in chosen:
        layer.call = functools.partial(_call_recomputed, layer, layer.call)  # in front of the class's method
    try:
        yield
    finally:
        for layer in chosen:
            del layer.call


def _call_recomputed(layer: keras.layers.Layer, call: Callable, *inputs: Any, **how: Any) -> Any:
    if how.get("training") is False:
        return call(*inputs, **how)
    return recomputed(lambda *inputs: call(*inputs, **how), layer, *inputs)


@serializable
class ChunkedAttention(layers.MultiHeadAttention):
    """Multi-head attention that never holds all scores: those of `n_chunks` parts of the queries one after the other.

    The same value as Keras' own on any backend and GPU, where fused kernels ask for a backend that has them, 16 bits and
    compute capability 8.0. Memory of the scores falls to 1 / n_chunks; they are computed twice. Attention with dropout or a
    mask is left to Keras.
    """

    n_chunks = 8

    def _compute_attention(self, query, key, value, attention_mask=None, training=None, *rest, **options):
        attend, length = super()._compute_attention, query.shape[1]  # of (batch, length, heads, width)
        if self._dropout or attention_mask is not None or any((*rest, *options.values())) or length is None:
            return attend(query, key, value, attention_mask, training, *rest, **options)
        size = -(-length // self.n_chunks)
        chunks = [query[:, at : at + size] for at in range(0, length, size)]
        attended = [keras.remat(lambda *tensors: attend(*tensors, training=training)[0])(chunk, key, value) for chunk in chunks]
        return keras.ops.concatenate(attended, axis=1), None
