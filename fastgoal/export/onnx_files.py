"""ONNX files in several precisions, and a model that runs them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from fastgoal.processing.checkpoints.errors import first_line

LOWEST_OPSET = 18
"""Operator set that torch's exporter writes without conversion."""
PRECISIONS = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
"""Suffixes of the file names, which transformers.js expects."""
LARGEST_FILE = 2_000_000_000
"""Largest size in bytes of the weights inside a file; a protobuf has at most 2 GB."""


def import_onnx() -> None:
    """Raise `ImportError` if a package for ONNX is missing."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}. ONNX export needs more packages: pip install 'fastgoal[onnx]'") from error


def check_precisions(precision: Sequence[str]) -> None:
    """Raise `ValueError` unless these are names of precisions."""
    if not precision or isinstance(precision, str) or not {*precision} <= {*PRECISIONS}:
        raise ValueError(f"`precision` must be a list of {', '.join(PRECISIONS)}, got {precision!r}.")


def check_opset(opset: int) -> None:
    """Raise `ValueError` unless torch writes this operator set and ONNX Runtime reads it."""
    import onnxruntime
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Identity", "a", "b")], "identity", value[:1], value[1:])
    try:
        if opset < LOWEST_OPSET:
            raise ValueError(f"torch writes {LOWEST_OPSET} and higher.")
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has errors of its own
        raise ValueError(
            f"`opset` must be an operator set that ONNX Runtime {onnxruntime.__version__} has, got {opset}: "
            f"{first_line(error)} Use {LOWEST_OPSET}."
        ) from None


def save_onnx(proto: Any, path: Path) -> None:
    """Write a graph in one file, or with its weights in `NAME.onnx_data` if they are too large for one."""
    import onnx

    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of this machine
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) <= LARGEST_FILE:
        onnx.save(proto, path)
    else:
        onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}_data")


def write_precision(path: Path, name: str) -> None:
    """Write an fp32 file in another precision, next to it. Inputs and outputs stay fp32."""
    import onnx

    target = path.with_name(f"{path.stem}{PRECISIONS[name]}.onnx")
    proto = onnx.load(path)
    if name == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        save_onnx(convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=True), target)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Not convolutions: ONNX Runtime has no kernel for a quantized one with signed weights.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the advice to run a pre-processing, which these graphs do not need
    try:
        quantize_dynamic(
            proto, target, op_types_to_quantize=["MatMul", "Gather"], per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(disabled)


class OnnxModel(nn.Module):
    """The towers of an exported folder, with the methods of a model that embedding and evaluation need.

    Args:
        folder: Folder of `text_model.onnx` and `vision_model.onnx`.
        precision: Name of a precision.
        model: The exported model.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, folder: Path, precision: str, model: Any) -> None:
        import onnxruntime

        super().__init__()
        self.config = model.config
        self.sessions = [
            onnxruntime.InferenceSession(
                str(folder / f"{name}{PRECISIONS[precision]}.onnx"), providers=["CPUExecutionProvider"]
            )
            for name in ("text_model", "vision_model")
        ]

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        """Embed texts, `(texts, tokens)`; `pooler_output` is `(texts, dim)`."""
        return self._run(self.sessions[0], input_ids, attention_mask)

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        """Embed images, `(images, 3, height, width)`; `pooler_output` is `(images, dim)`."""
        return self._run(self.sessions[1], pixel_values)

    def _run(self, session: Any, *values: torch.Tensor | None) -> Any:
        names = [entry.name for entry in session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, values, strict=False) if value is not None}
        return SimpleNamespace(pooler_output=torch.from_numpy(session.run(None, feed)[0]))
