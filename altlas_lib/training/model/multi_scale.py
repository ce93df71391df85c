"""The multi-scale model: N-BEATS style stacks, a TCN and a Transformer over the same past, fused, with three heads.

Only Keras layers and `keras.ops`: the model is the same on TensorFlow, JAX and PyTorch.

- N-BEATS: Oreshkin et al. 2020, https://arxiv.org/abs/1905.10437
- TCN: Bai et al. 2018, https://arxiv.org/abs/1803.01271
- Transformer encoder: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
"""

from collections import Counter

import numpy as np

from ..backend import keras, serializable
from .config import (
    CLASSIFICATION,
    N_FEATURES,
    REGRESSION,
    THRESHOLD_HEAD,
    ModelConfig,
    NBeatsConfig,
    TcnConfig,
    TransformerConfig,
)
from .recompute import ChunkedAttention, recomputed

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


@serializable
class EncoderLayer(layers.Layer):
    """Attention, then two dense layers, each with normalisation before, dropout after and a residual connection around it.

    Dropout acts on the sub-layers' outputs. On the attention weights it would keep every backend from fused attention.
    """

    def __init__(
        self,
        n_heads: int,
        feed_forward: int,
        dropout: float,
        recompute: bool = False,
        memory_efficient_attention: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.n_heads, self.feed_forward, self.dropout = n_heads, feed_forward, dropout
        self.recompute, self.memory_efficient_attention = recompute, memory_efficient_attention

    def build(self, shape):  # (batch, length, d_model)
        d_model, dtype = shape[-1], self.dtype_policy
        attention = ChunkedAttention if self.memory_efficient_attention else layers.MultiHeadAttention
        self.attention_norm = layers.LayerNormalization(name="attention_norm", dtype=dtype)
        self.attention = attention(self.n_heads, d_model // self.n_heads, name="attention", dtype=dtype)
        self.attention_dropout = layers.Dropout(self.dropout, name="attention_dropout", dtype=dtype)
        self.feed_forward_norm = layers.LayerNormalization(name="feed_forward_norm", dtype=dtype)
        self.feed_forward_in = layers.Dense(self.feed_forward, activation="relu", name="feed_forward_in", dtype=dtype)
        self.feed_forward_out = layers.Dense(d_model, name="feed_forward_out", dtype=dtype)
        self.feed_forward_dropout = layers.Dropout(self.dropout, name="feed_forward_dropout", dtype=dtype)
        for layer in (self.attention_norm, self.feed_forward_norm, self.feed_forward_in):
            layer.build(shape)
        self.attention.build(shape, shape)
        self.feed_forward_out.build((*shape[:-1], self.feed_forward))

    def call(self, x, training=None):
        if self.recompute and training:
            return recomputed(lambda x: self._forward(x, training=True), self, x)
        return self._forward(x, training)

    def _forward(self, x, training):
        y = self.attention_norm(x)
        x = x + self.attention_dropout(self.attention(y, y, training=training), training=training)
        y = self.feed_forward_out(self.feed_forward_in(self.feed_forward_norm(x)))
        return x + self.feed_forward_dropout(y, training=training)

    def get_config(self) -> dict:
        names = ("n_heads", "feed_forward", "dropout", "recompute", "memory_efficient_attention")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _add_transformer(sequence, config: TransformerConfig, dropout: float, **switches: bool):
    """Encoder with normalisation before each sub-layer, averaged over the window."""
    x = _crop_to_last(sequence, config.window, "transformer-past")
    x = layers.Dense(config.d_model, name="transformer-embedding")(x)
    x = PositionalEncoding(name="transformer-position")(x)
    for i in range(1, config.n_layers + 1):
        x = EncoderLayer(config.n_heads, config.feed_forward, dropout, name=f"transformer-layer{i}", **switches)(x)
    x = layers.LayerNormalization(name="transformer-norm")(x)
    return layers.GlobalAveragePooling1D(name="transformer-average")(x)


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
        switches = {"recompute": config.recompute, "memory_efficient_attention": config.memory_efficient_attention}
        outputs.append(_add_transformer(sequence, config.transformer, config.dropout, **switches))
    x = layers.Concatenate(name="fusion-concatenate")([*outputs, features])
    for i, units in enumerate(config.fusion, start=1):
        x = layers.Dense(units, activation="relu", name=f"fusion-dense{i}")(x)
        x = layers.Dropout(config.dropout, name=f"fusion-dropout{i}")(x)
    heads = {REGRESSION: (1, None), CLASSIFICATION: (3, "softmax"), THRESHOLD_HEAD: (1, "sigmoid")}
    return keras.Model(
        {"window": window, "features": features},
        {
            # float32 also under mixed_float16: the losses take logarithms of these.
            head: layers.Dense(units, activation=activation, dtype="float32", name=f"heads-{head}")(x)
            for head, (units, activation) in heads.items()
        },
        name="multi_scale",
    )


def parameters_by_part(model: keras.Model) -> dict[str, int]:
    """The number of parameters of each part of the model (a layer's part is its name up to the hyphen), and `total`."""
    counts = Counter()
    for layer in model.layers:
        counts[layer.name.partition("-")[0]] += layer.count_params()
    order = ("nbeats", "tcn", "transformer", "fusion", "heads")
    parts = sorted(+counts, key=lambda part: (order.index(part.partition("_")[0]), len(part), part))  # 50 before 200, 1000
    return {**{part: counts[part] for part in parts}, "total": model.count_params()}
