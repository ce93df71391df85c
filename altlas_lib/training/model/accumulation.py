"""Gradient accumulation that equals the big batch, however an epoch is cut into micro-batches.

Keras' own (`gradient_accumulation_steps=k`, 3.15) does so for equal micro-batches only: a short one weighs like a full one,
what an epoch leaves over is carried into the next one and lost at the end of training, an infinite gradient discards its
micro-batch but not its update, and the growth of the loss scale is counted in micro-batches.
"""

from dataclasses import dataclass

from ..backend import across_replicas, keras, n_replicas

ops = keras.ops


@dataclass(frozen=True)
class MicroBatching:
    """How an epoch is cut: into updates of `batch_size` samples, these into micro-batches; the last of either may be short.

    Raises:
        ValueError: a size below 1, a micro-batch larger than its batch, or less samples than one batch.
    """

    n_samples: int
    batch_size: int
    micro_batch_size: int

    def __post_init__(self):
        if not 1 <= self.micro_batch_size <= self.batch_size:
            sizes = f"micro-batches of {self.micro_batch_size} for updates of {self.batch_size} samples"
            raise ValueError(f"{sizes}: expected 1 or more, and no more than the update has")
        if self.n_samples < self.batch_size:
            sizes = f"there are {self.n_samples} samples, one update takes {self.batch_size}"
            raise ValueError(f"{sizes}: make the batch smaller, or give more samples")

    @property
    def n_updates(self) -> int:
        return -(-self.n_samples // self.batch_size)

    @property
    def n_per_update(self) -> int:
        """Micro-batches of an update, the epoch's last one aside."""
        return -(-self.batch_size // self.micro_batch_size)

    @property
    def n_micro_batches(self) -> int:
        n_whole, rest = divmod(self.n_samples, self.batch_size)
        return n_whole * self.n_per_update + -(-rest // self.micro_batch_size)

    def bounds(self, index: int) -> slice:
        """The samples of a micro-batch, counted in the epoch's order."""
        update, within = divmod(index, self.n_per_update)
        start = update * self.batch_size + within * self.micro_batch_size
        return slice(start, min(start + self.micro_batch_size, (update + 1) * self.batch_size, self.n_samples))


class AccumulatingOptimizer(keras.optimizers.Optimizer):
    """Sums the gradients of an update's micro-batches and hands the sum to another optimizer.

    Which micro-batch it is, and so its share of the update's samples, is counted on the device. `scale_loss` weighs the mean
    loss by this share: the sum is the gradient of the big batch's mean loss. Put it around a `LossScaleOptimizer`, not inside:
    an infinity in a micro-batch then skips the whole update, as in the big batch. Compile the model with
    `auto_scale_loss=False`, or Keras wraps a second one around both. Losses are means over samples: with the reductions "sum"
    and "mean_with_sample_weight" a micro-batch's share of the samples is not its share of the loss. A model is saved with the
    inner optimizer, which `fit` puts back.

    Args:
        micro_batching: of every epoch that the model is trained on.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, micro_batching: MicroBatching):
        super().__init__(learning_rate=0.0, name="accumulating")  # not used: the inner one has its own
        self.inner_optimizer, self.micro_batching = inner_optimizer, micro_batching
        self.index = self.add_variable((), dtype="int", aggregation="only_first_replica", name="micro_batch")

    def build(self, variables):
        if self.built:
            return
        self.sums = [self.add_variable_from_reference(variable, "gradient_sum") for variable in variables]
        if not self.inner_optimizer.built:  # a LossScaleOptimizer would make its variables once more
            self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def variables(self):
        return [*super().variables, *self.inner_optimizer.variables]

    @property
    def iterations(self):
        """Updates, skipped ones left out."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):  # of Keras' callbacks
        self.inner_optimizer.learning_rate = value

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    def _share_and_whether_last(self):
        """The part of its update's samples that the micro-batch at hand has; whether it completes the update."""
        cut, index = self.micro_batching, ops.cast(self.index, "int32")
        n_whole, rest = divmod(cut.n_samples, cut.batch_size)
        batch_size = ops.where(index // cut.n_per_update < n_whole, cut.batch_size, rest)
        remaining = batch_size - index % cut.n_per_update * cut.micro_batch_size
        size = ops.minimum(remaining, cut.micro_batch_size)
        return ops.cast(size, "float32") / ops.cast(batch_size, "float32"), remaining <= cut.micro_batch_size

    def scale_loss(self, loss):
        share, _ = self._share_and_whether_last()
        return self.inner_optimizer.scale_loss(loss * ops.cast(share, loss.dtype))

    def _count_micro_batch(self):
        self.index.assign((self.index + 1) % self.micro_batching.n_micro_batches)

    def apply(self, grads, trainable_variables=None):
        """Where variables are changed in place: TensorFlow, PyTorch."""
        if not self.built:
            self.build(list(trainable_variables))
        if keras.backend.backend() == "tensorflow" and n_replicas() > 1:
            across_replicas(self._apply, grads)
        else:
            self._apply(lambda function, args=(): function(*args), grads)
        self._count_micro_batch()

    def _apply(self, on_each, grads):
        on_each(self._add_to_sums, args=(grads,))
        ops.cond(self._share_and_whether_last()[1], lambda: on_each(self._apply_sums), lambda: None)

    def _add_to_sums(self, grads):
        for total, gradient in zip(self.sums, grads, strict=True):
            if gradient is not None:  # of a weight that the loss does not depend on
                self.assign_add(total, gradient)

    def _apply_sums(self):
        self.inner_optimizer.apply([ops.convert_to_tensor(total) for total in self.sums])
        for total in self.sums:
            self.assign(total, ops.zeros_like(total))  # subtracted, an infinity would stay

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        """Where values go in and come out: JAX."""
        own = super().variables
        inner = optimizer_variables[len(own) :]
        with keras.StatelessScope(zip(self.variables, optimizer_variables, strict=True)) as scope:
            _, is_last = self._share_and_whether_last()
            self._count_micro_batch()
            # Of a weight that the loss does not depend on JAX gives zeros, never None.
            sums = [total + gradient for total, gradient in zip(self.sums, grads, strict=True)]

            def update():
                updated = self.inner_optimizer.stateless_apply(inner, sums, trainable_variables)
                return *updated, [ops.zeros_like(total) for total in sums]

            trainable, new_inner, new_sums = ops.cond(is_last, update, lambda: (trainable_variables, inner, sums))
            for total, value in zip(self.sums, new_sums, strict=True):
                total.assign(value)
        return trainable, [*map(scope.get_current_value, own), *new_inner]
