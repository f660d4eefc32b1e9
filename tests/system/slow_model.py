"""A model that takes its time: one image in, a few numbers out, and as many sums between as asked.

None of the models that Edgewise ships takes more than a fraction of a millisecond on a PC, which
is too little for a route to be worth choosing.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

SIDE = 112  # pixels; one channel of FP32
INPUT_BYTES = 4 * SIDE * SIDE
CHANNELS = 16
KERNEL = 3
TRIAL = 17  # layers
RUNS = 15
IDENTIFIER = b"TFL3"


def taking(median_s: float) -> bytes:
    """Build a model whose run takes about so much processor time here."""
    trial = Interpreter(model_content=build(TRIAL), num_threads=1)
    trial.allocate_tensors()
    times = []
    for _ in range(RUNS):
        began = time.thread_time()
        trial.invoke()
        times.append(time.thread_time() - began)
    # The first layer takes next to nothing: it has one channel to read.
    layer_s = statistics.median(times) / (TRIAL - 1)
    return build(1 + max(round(median_s / layer_s), 1))


def build(layers: int) -> bytes:
    """Build so many convolutions, one after the other, and the mean of each channel."""
    model = schema.ModelT(version=3, buffers=[schema.BufferT()], description=b"slow")
    graph = schema.SubGraphT(tensors=[], operators=[])
    model.subgraphs = [graph]
    model.operatorCodes = [
        schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=1)
        for code in (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.MEAN)
    ]

    def tensor(name: str, shape: tuple[int, ...], value: np.ndarray | None = None) -> int:
        whole = value is not None and value.dtype == np.int32
        kind = schema.TensorType.INT32 if whole else schema.TensorType.FLOAT32
        if value is not None:
            data = np.frombuffer(value.tobytes(), np.uint8)
            model.buffers.append(schema.BufferT(data=data))
        buffer = 0 if value is None else len(model.buffers) - 1
        graph.tensors.append(schema.TensorT(name=name, shape=list(shape), type=kind, buffer=buffer))
        return len(graph.tensors) - 1

    def weights(channels: int) -> int:
        shape = (CHANNELS, KERNEL, KERNEL, channels)
        # A mean of what it sees: values stay as they are, through any number of layers.
        value = np.full(shape, 1 / (KERNEL * KERNEL * channels), np.float32)
        return tensor(f"weights_{channels}", shape, value)

    bias = tensor("bias", (CHANNELS,), np.zeros(CHANNELS, np.float32))
    first, others = weights(1), weights(CHANNELS)
    axes = tensor("axes", (2,), np.array([1, 2], np.int32))
    image = tensor("image", (1, SIDE, SIDE, 1))
    maps = [tensor(f"layer_{n}", (1, SIDE, SIDE, CHANNELS)) for n in range(layers)]
    scores = tensor("scores", (1, CHANNELS))
    convolve = schema.Conv2DOptionsT(
        padding=schema.Padding.SAME,
        strideW=1,
        strideH=1,
        dilationWFactor=1,
        dilationHFactor=1,
        fusedActivationFunction=schema.ActivationFunctionType.RELU,
    )
    for source, sink in pairwise((image, *maps)):
        graph.operators.append(
            schema.OperatorT(
                opcodeIndex=0,
                inputs=[source, first if source == image else others, bias],
                outputs=[sink],
                builtinOptionsType=schema.BuiltinOptions.Conv2DOptions,
                builtinOptions=convolve,
            )
        )
    graph.operators.append(
        schema.OperatorT(
            opcodeIndex=1,
            inputs=[maps[-1], axes],
            outputs=[scores],
            builtinOptionsType=schema.BuiltinOptions.ReducerOptions,
            builtinOptions=schema.ReducerOptionsT(keepDims=False),
        )
    )
    graph.inputs, graph.outputs = [image], [scores]
    builder = flatbuffers.Builder(2**16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
