"""Small ONNX files, made here."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

N_IN, N_CLASSES = 16, 3


def write_classifier(path, *, seed=0, opset=15, input_type=TensorProto.FLOAT, rows="batch", scale=1.0):
    """Two dense layers and a softmax: x (n, 16) -> probabilities (n, 3); their weights are returned."""
    random = np.random.default_rng(seed)
    weights = {"w1": random.normal(size=(N_IN, 32)) * scale, "b1": random.normal(size=32)}
    weights |= {"w2": random.normal(size=(32, N_CLASSES)), "b2": random.normal(size=N_CLASSES)}
    weights = {name: array.astype("float32") for name, array in weights.items()}
    cast = [helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT)]
    nodes = [
        helper.make_node("MatMul", ["x32", "w1"], ["h1"]),
        helper.make_node("Add", ["h1", "b1"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "w2"], ["h4"]),
        helper.make_node("Add", ["h4", "b2"], ["h5"]),
        helper.make_node("Softmax", ["h5"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        cast + nodes,
        "classifier",
        [helper.make_tensor_value_info("x", input_type, [rows, N_IN])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [rows, N_CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return weights


def classify(x, weights):
    """The same in float64 NumPy."""
    hidden = np.maximum(x.astype("float64") @ weights["w1"] + weights["b1"], 0)
    logits = hidden @ weights["w2"] + weights["b2"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def read_opset(path):
    return onnx.load(path).opset_import[0].version
