"""CuPy, for a rehearsal: in the path of a process it is the stand-in, on a GPU that calls itself a T4."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
import gpu_stand_in
import numpy as np

module = gpu_stand_in.stand_in_cupy(2**30)
module.cuda.runtime.getDeviceProperties = lambda device: {"name": b"Tesla T4"}
module.add, module.sum, module.argpartition = (gpu_stand_in.on_stand_ins(each) for each in (np.add, np.sum, np.argpartition))
gpu_stand_in.cublas.mode = 16
module.__spec__ = __spec__
sys.modules[__name__] = module
