"""`cupyx.profiler.benchmark`, for a rehearsal: seconds of a CPU, which say nothing of a GPU."""

import time
import types

import numpy as np


def benchmark(function, args, n_repeat, n_warmup):
    seconds = []
    for _ in range(n_repeat):
        began_s = time.perf_counter()
        function(*args)
        seconds.append(time.perf_counter() - began_s)
    return types.SimpleNamespace(gpu_times=np.array([seconds]))
