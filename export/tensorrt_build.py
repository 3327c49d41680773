"""An ONNX file to a TensorRT engine, with the library's own builder.

It has not built one yet: see `models.tensorrt_library`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.onnx_files import ExportError
from export.tensorrt_profiles import Shapes
from models.manifest import Precision


def build_engine(
    library: Any,
    source: Path,
    profiles: Sequence[Shapes],
    *,
    precision: Precision,
    workspace_bytes: int,
    timing_cache: Path,
) -> bytes:
    """The engine of an ONNX file, with one optimisation profile for each entry of `profiles`.

    Args:
        library: the module `tensorrt`.
        source: its weights may lie in a file beside it.
        precision: what the file computes in; the network is strongly typed, so the builder has no
            choice left, but for TF32 inside float32 products, which is turned off.
        workspace_bytes: memory of the GPU that a kernel may use beside its tensors.
        timing_cache: file of earlier measurements of kernels, read if it is there and rewritten.

    Raises:
        ExportError: TensorRT does not read the file, or builds nothing of it.
    """
    logger = library.Logger(library.Logger.WARNING)
    builder = library.Builder(logger)
    flags = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise ExportError(f"{source.stem}: TensorRT {library.__version__} cannot read it: {errors}")
    _let_attention_decompose(library, network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, workspace_bytes)
    if precision == "fp32":
        config.clear_flag(library.BuilderFlag.TF32)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{source.stem}: TensorRT refused a profile of {dict(shapes)}")
    earlier = timing_cache.read_bytes() if timing_cache.is_file() else b""
    cache = config.create_timing_cache(earlier)
    # Without `ignore_mismatch`: measurements of another GPU or version are not taken.
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(f"{source.stem}: TensorRT built no engine of it: see its log")
    timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _let_attention_decompose(library: Any, network: Any) -> None:
    """Allow several kernels for an attention that has no fused one: of float32, or odd heads."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == library.LayerType.ATTENTION_INPUT:
            layer.__class__ = library.IAttentionInputLayer  # it comes as a plain layer
            layer.attention.decomposable = True
