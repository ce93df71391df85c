"""A training step of a PyTorch module on tensors without values, as a CUDA GPU would run it: what lives when.

Runs in the planner's child process only: it changes kernels of PyTorch for the whole process. Fake tensors are on the "cpu",
because autograd asks a device that is not there for its guard; what CUDA does otherwise is put in their place:

- `torch.autocast` runs in float32 what CUDA's list says (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can
  autocast to float32"), of which the CPU's leaves out softmax and the normalisations;
- attention is the memory-efficient kernel, dropout keeps a mask of booleans;
- optimizers update all weights at once (`foreach`), as they do on CUDA by default.

Not imitated: CUDA's fused `rms_norm` and cuDNN's recurrent layers, whose parts, as counted here, hold more than they do.
"""

import copy
import importlib
import weakref
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeCopyMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.flop_counter import flop_registry

from ..plan.request import PlanError, StepCost, StepRequest
from .allocator import CachingAllocator, round_up
from .task import AMP_POLICIES, Task, is_module, recompute_modules

aten = torch.ops.aten
# cuBLAS' workspace before compute capability 9 (aten/src/ATen/cuda/CublasHandlePool.cpp: 2 x 4096 + 8 x 16 KiB), one for the
# forward and one for the backward pass' thread.
CUBLAS_WORKSPACES_BYTES = 2 * (2 * 4096 + 8 * 16) * 1024
_IN_FLOAT32 = """acos asin binary_cross_entropy_with_logits cosh cosine_embedding_loss cosine_similarity cumprod cumsum dist
    erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm log log10 log1p log2 log_softmax.int
    logsumexp margin_ranking_loss mse_loss nll_loss nll_loss2d norm.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prod reciprocal
    renorm rsqrt sinh smooth_l1_loss soft_margin_loss softmax.int softplus sum sum.dim_IntList tan"""


def _run_in_float32(name: str) -> Any:
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*inputs: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(without):
            return operation(
                *tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, inputs), **options
            )

    return run


def _attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (each.repeat_interleave(query.size(-3) // each.size(-3), -3) for each in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    inputs = query, key, value, attn_mask
    return aten._scaled_dot_product_efficient_attention(*inputs, True, dropout_p, is_causal, scale=scale)[0]


def _drop(input, p, train):
    return torch.native_dropout(input, p, train)[0] if train and p else input


_LIKE_CUDA = {name: (_run_in_float32(name), "AutocastCPU") for name in _IN_FLOAT32.split()} | {
    "scaled_dot_product_attention": (_attend, "AutogradCPU"),
    "dropout": (_drop, "AutogradCPU"),
}


_WEIGHT_OF = {aten.convolution: 1, aten.convolution_backward: 2}  # among the arguments


def _borrow(touched: int, weight: torch.Tensor) -> int:
    """Bytes that cuDNN's algorithms for a convolution take at worst, FFT aside; at best it is none.

    3 x 3: all in Winograd's tiles F(4 x 4, 3 x 3), 36 values for 9 of the weights and for 16 of the rest (Lavin and Gray 2015,
    https://arxiv.org/abs/1509.09308). Others: a copy of all with the channels last, as tensor cores want them.
    """
    return touched * 9 // 4 + weight.nbytes * 7 // 4 if weight.shape[2:] == (3, 3) else touched


class _Recorder(TorchDispatchMode):
    """Every storage from its first operation to its end, with what the operations read, write and compute.

    An event is a storage's number and its bytes, 0 where it ends; None: bytes that are lent for a moment.
    """

    def __init__(self):
        super().__init__()
        self.events: list[tuple[int | None, int]] = []
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.n_flops = self.moved_bytes = 0

    def add(self, values: Any) -> int:
        """Bytes of the storages that are new."""
        n_before = len(self.events)
        for storage in [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, torch.Tensor)]:
            if storage not in self.seen:
                self.seen.add(storage)
                weakref.finalize(storage, self.events.append, (len(self.events), 0))
                self.events.append((len(self.events), storage.nbytes()))
        return sum(round_up(n_bytes) for _, n_bytes in self.events[n_before:])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.add(results)
        if not func.is_view:
            touched = _count_bytes((args, kwargs, results))
            self.moved_bytes += touched
            if func.overloadpacket in flop_registry:
                self.n_flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=results)
            if func.overloadpacket in _WEIGHT_OF:
                self.events.append((None, _borrow(touched, args[_WEIGHT_OF[func.overloadpacket]])))
        return results


def replay(events: list[tuple[int | None, int]]) -> tuple[int, int]:
    """The largest sum of what lived; and the bytes reserved, with what convolutions borrow."""
    allocator, blocks, live, peak = CachingAllocator(), {}, 0, 0
    for number, n_bytes in events:
        if number is None:
            allocator.free(allocator.allocate(n_bytes))
        elif number not in blocks:
            blocks[number] = allocator.allocate(n_bytes), round_up(n_bytes)
            live += round_up(n_bytes)
            peak = max(peak, live)
        else:
            block, size = blocks.pop(number)
            allocator.free(block)
            live -= size
    return peak, allocator.reserved_bytes


def plan_step(task: Task, request: StepRequest) -> StepCost:
    """What a step of a module with fake parameters needs.

    Raises:
        PlanError: nobody said which shapes its inputs have.
    """
    recorder, shapes = _Recorder(), request.input_shapes.values()
    if task.data is None and not shapes:
        raise PlanError(
            "the shapes of the module's inputs are unknown: give (module, (x, y)) with one sample or more, or name float32 "
            "inputs without the batch, as in input_shapes={'x': (3, 224, 224)} (or --input x=3,224,224)"
        )
    samples = task.data or (tuple(torch.empty(1, *shape) for shape in shapes), None)
    samples = tree_map(lambda array: None if array is None else torch.as_tensor(array), samples)
    recompute_modules(task.module, request.recompute)
    amp, optimizer = getattr(torch, AMP_POLICIES.get(request.dtype_policy, ""), None), task.make_optimizer()
    for group in optimizer.param_groups:
        if group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True
    parts = {"weights": recorder.add([*task.module.parameters(), *task.module.buffers()])}
    with recorder:
        for i in range(
            2 * min(request.gradient_accumulation_steps, 2)
        ):  # two updates: the second one has a state to begin with
            batch = tree_map_only(torch.Tensor, lambda t: t.new_empty(request.batch_size, *t.shape[1:]), samples)
            parts["inputs"] = _count_bytes(batch)
            with torch.autocast("cpu", amp, enabled=amp is not None):
                loss = task.compute_loss(*batch)
            loss.backward()
            del loss, batch
            if request.gradient_accumulation_steps == 1 or i % 2:
                optimizer.step()
                optimizer.zero_grad()
    parts["optimizer"] = _count_bytes([*optimizer.state.values()])
    live, reserved = replay(recorder.events)
    return StepCost(
        bytes_by_part=parts | {"temporaries": live - sum(parts.values())},
        reserved_bytes=reserved + CUBLAS_WORKSPACES_BYTES,
        n_parameters=sum(each.numel() for each in task.module.parameters()),
        n_flops=recorder.n_flops / 2,
        moved_bytes=recorder.moved_bytes / 2,
        dtype_policy=request.dtype_policy or "float32",
        optimizer=type(optimizer).__name__.lower(),
    )


def _count_bytes(values: Any) -> int:
    return sum(round_up(each.nbytes) for each in tree_leaves(values) if isinstance(each, torch.Tensor))


def answer(request: StepRequest) -> StepCost | None:
    """The cost of the step, or why there is none; None: the model is no PyTorch module."""

    def build() -> Any:
        if request.module_file:
            return torch.load(request.module_file, weights_only=False)
        module, _, function = request.builder.partition(":")
        return getattr(importlib.import_module(module), function)()

    mode, library = FakeTensorMode(allow_non_fake_inputs=True), torch.library.Library("aten", "IMPL")
    for name, (kernel, key) in _LIKE_CUDA.items():
        library.impl(name, kernel, key, allow_override=True)
    try:
        with mode:
            made = build()  # no weights are drawn or held
    except Exception:  # it looks at values
        made = build()
    if not is_module(made):
        return None
    try:
        with FakeCopyMode(mode):
            made = copy.deepcopy(made)
        with mode:
            return plan_step(Task.of(made), request)
    except Exception as error:  # whatever the user's module raises
        said = f"the step failed on tensors without values ({type(error).__name__}: {str(error)[:500]})"
        return StepCost(error=f"{said}: keep .item() and branches on values out of module, loss and optimizer")
