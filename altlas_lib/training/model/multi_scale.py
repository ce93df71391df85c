"""The multi-scale model: N-BEATS style stacks, a TCN and a Transformer over the same past, fused, with three heads.

Only Keras layers and `keras.ops`: the model is the same on TensorFlow, JAX and PyTorch.

- N-BEATS: Oreshkin et al. 2020, https://arxiv.org/abs/1905.10437
- TCN: Bai et al. 2018, https://arxiv.org/abs/1803.01271
- Transformer encoder: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
"""

import numpy as np

from ..backend import keras, serializable
from .config import HEADS, N_FEATURES, ModelConfig, NBeatsConfig, TcnConfig, TransformerConfig
from .recompute import ChunkedAttention

layers = keras.layers


@serializable
class PositionalEncoding(layers.Layer):
    """Adds sines and cosines of the position, so that attention can tell order (Vaswani et al. 2017, section 3.5)."""

    def call(self, x):  # (batch, length, d_model)
        length, d_model = x.shape[1:]
        angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, d_model, 2) / d_model)
        table = np.stack((np.sin(angle), np.cos(angle)), axis=-1).reshape(length, d_model)
        return x + keras.ops.cast(table, x.dtype)


def _crop_to_last(sequence, n_values: int, name: str):
    return layers.Cropping1D((sequence.shape[1] - n_values, 0), name=name)(sequence)


def _add_nbeats(sequence, config: NBeatsConfig, dropout: float):
    """Doubly residual stack: a block takes what it explains away from what the next one sees; the sum of that is the forecast.

    The paper maps a block's output twice more, to a backcast and to a forecast. The specification's count of about 9.8M
    parameters leaves none for these maps (with them: about 18M): here a block's output is both, in a space of `units`
    dimensions.
    """
    part = f"nbeats_{config.window}"
    x = layers.Flatten(name=f"{part}-flatten")(_crop_to_last(sequence, config.window, f"{part}-past"))
    entry = residual = layers.Dense(config.units, name=f"{part}-entry")(x)
    for i in range(1, config.n_blocks + 1):
        block = layers.Dense(config.units, activation="relu", name=f"{part}-block{i}_dense")(residual)
        block = layers.BatchNormalization(name=f"{part}-block{i}_norm")(block)
        block = layers.Dropout(dropout, name=f"{part}-block{i}_dropout")(block)
        residual = layers.Subtract(name=f"{part}-block{i}_residual")([residual, block])
    return layers.Subtract(name=f"{part}-forecast")([entry, residual])  # the sum of the blocks' outputs


def _add_tcn(sequence, config: TcnConfig, dropout: float):
    """Residual blocks of two dilated causal convolutions; the state after the last value is the summary.

    The widths follow each other with all dilations each: only so do the reference's 500 values all reach the end (505).
    Keras has no weight normalisation; layer normalisation stands in its place.
    """
    x = _crop_to_last(sequence, config.window, "tcn-past")
    for stage, filters in enumerate(config.filters, start=1):
        for dilation in config.dilations:
            name = f"tcn-stage{stage}_dilation{dilation}"
            shortcut = x
            if x.shape[-1] != filters:
                shortcut = layers.Conv1D(filters, 1, name=f"{name}_shortcut")(x)
            for i in (1, 2):
                x = layers.Conv1D(
                    filters, config.kernel_size, padding="causal", dilation_rate=dilation, name=f"{name}_conv{i}"
                )(x)
                x = layers.LayerNormalization(name=f"{name}_norm{i}")(x)
                x = layers.ReLU(name=f"{name}_relu{i}")(x)
                x = layers.SpatialDropout1D(dropout, name=f"{name}_dropout{i}")(x)
            x = layers.Add(name=f"{name}_residual")([shortcut, x])
    return layers.Flatten(name="tcn-flatten")(_crop_to_last(x, 1, "tcn-last"))


def _add_transformer(sequence, config: TransformerConfig, dropout: float, attention: type[layers.MultiHeadAttention]):
    """Encoder with normalisation before each sub-layer, averaged over the window.

    Dropout acts on the sub-layers' outputs. On the attention weights it would keep every backend from fused attention.
    """
    x = layers.Dense(config.d_model, name="transformer-embedding")(_crop_to_last(sequence, config.window, "transformer-past"))
    x = PositionalEncoding(name="transformer-position")(x)
    for name in config.layer_names:
        x = _make_encoder_layer(name, x, config, dropout, attention)(x)
    x = layers.LayerNormalization(name="transformer-norm")(x)
    return layers.GlobalAveragePooling1D(name="transformer-average")(x)


def _make_encoder_layer(name: str, x, config: TransformerConfig, dropout: float, attention: type[layers.MultiHeadAttention]):
    """A model of its own, which can be computed again as a whole."""
    inputs = keras.Input(x.shape[1:], dtype=x.dtype)
    y = layers.LayerNormalization(name="attention_norm")(inputs)
    y = attention(config.n_heads, config.d_model // config.n_heads, name="attention")(y, y)
    attended = inputs + layers.Dropout(dropout, name="attention_dropout")(y)
    y = layers.LayerNormalization(name="feed_forward_norm")(attended)
    y = layers.Dense(config.feed_forward, activation="relu", name="feed_forward_in")(y)
    y = layers.Dense(config.d_model, name="feed_forward_out")(y)
    return keras.Model(inputs, attended + layers.Dropout(dropout, name="feed_forward_dropout")(y), name=name)


def build_model(config: ModelConfig, n_features: int = N_FEATURES, *, dtype_policy: str = "float32") -> keras.Model:
    """The model of `config`, not compiled.

    Inputs, a dict:
        window (batch, config.window): scaled log values, oldest first. Shorter windows are its end, cut inside the model.
        features (batch, n_features): scaled statistics of the past.
    Outputs, a dict in float32:
        regression (batch, 1): log of the next value.
        classification (batch, 3): probabilities of below 1.5, 1.5 to 10, 10 and more.
        threshold (batch, 1): probability of 1.5 or more, as seen by the class-weighted loss.

    Raises:
        ValueError: Keras knows no such dtype policy.
    """
    policy_before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)
    try:
        return _connect(config, n_features)
    finally:
        keras.config.set_dtype_policy(policy_before)


def _connect(config: ModelConfig, n_features: int) -> keras.Model:
    window = keras.Input((config.window,), name="window")
    features = keras.Input((n_features,), name="features")
    sequence = layers.Reshape((config.window, 1), name="sequence")(window)
    outputs = [_add_nbeats(sequence, stack, config.dropout) for stack in config.nbeats]
    if config.tcn:
        outputs.append(_add_tcn(sequence, config.tcn, config.dropout))
    if config.transformer:
        attention = ChunkedAttention if config.memory_efficient_attention else layers.MultiHeadAttention
        outputs.append(_add_transformer(sequence, config.transformer, config.dropout, attention))
    x = layers.Concatenate(name="fusion-concatenate")([*outputs, features])
    for i, units in enumerate(config.fusion, start=1):
        x = layers.Dense(units, activation="relu", name=f"fusion-dense{i}")(x)
        x = layers.Dropout(config.dropout, name=f"fusion-dropout{i}")(x)
    sizes = zip(HEADS, (1, 3, 1), (None, "softmax", "sigmoid"), strict=True)
    return keras.Model(
        {"window": window, "features": features},
        {
            # float32 also under mixed_float16: the losses take logarithms of these.
            head: layers.Dense(units, activation=activation, dtype="float32", name=f"heads-{head}")(x)
            for head, units, activation in sizes
        },
        name="multi_scale",
    )
