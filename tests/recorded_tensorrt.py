"""A double of the module `tensorrt`: it records calls, checks them as the documentation words them,
and runs its "engines" with onnxruntime on the memory that it was given.

Source: TensorRT 10's Python API, https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api
"""

import ctypes
import enum
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from models.manifest import EngineTarget


class LayerType(enum.Enum):
    ATTENTION_INPUT = enum.auto()
    ATTENTION_OUTPUT = enum.auto()
    OTHER = enum.auto()


class ILayer:
    """What a network gives for every layer; only its own class shows what is in it."""

    def __init__(self, kind: LayerType, attention: Any = None) -> None:
        self.type, self._attention = kind, attention


class IAttentionInputLayer(ILayer):
    @property
    def attention(self) -> Any:
        return self._attention


class DataType(enum.Enum):
    FLOAT = onnx.TensorProto.FLOAT
    INT64 = onnx.TensorProto.INT64
    BOOL = onnx.TensorProto.BOOL


NUMPY = {DataType.FLOAT: np.float32, DataType.INT64: np.int64, DataType.BOOL: np.bool_}
SCRATCH_BYTES = 512
Enum = enum.Enum
GPU = EngineTarget(gpu="NVIDIA H100 80GB HBM3", compute_capability="9.0", tensorrt="10.15.1.29")


def install(patch: pytest.MonkeyPatch, target: EngineTarget = GPU) -> "RecordedTensorRT":
    """Let `import tensorrt` give a new double, and the CPU pass for a GPU that it runs on."""
    library = RecordedTensorRT(version=target.tensorrt)
    patch.setitem(sys.modules, "tensorrt", library)  # type: ignore[arg-type]
    for user in ("export.tensorrt_export", "service.backends.tensorrt_backend"):
        patch.setattr(f"{user}.engine_target", lambda *_: target)
    return library


class RecordedTensorRT:
    """What `import tensorrt` gives. calls: (name, arguments) of everything that matters, in order.

    refused: what fails as it does in the library, by returning False or None:
    "parse", "build", "deserialize", "profile", "run".
    """

    __spec__ = ModuleSpec("tensorrt", None)
    NetworkDefinitionCreationFlag = enum.IntEnum("Flag", {"STRONGLY_TYPED": 1})
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")
    BuilderFlag = Enum("BuilderFlag", "TF32")
    ExecutionContextAllocationStrategy = Enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    LayerType = LayerType
    DataType = DataType
    IAttentionInputLayer = IAttentionInputLayer

    def __init__(self, version: str) -> None:
        self.__version__ = version
        self.refused = ""
        self.calls: list[tuple[str, Any]] = []

    def record(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))

    def named(self, name: str) -> list[Any]:
        """The arguments of every call of that name."""
        return [arguments for called, arguments in self.calls if called == name]

    class Logger:
        WARNING = "warning"

        def __init__(self, severity: str) -> None:
            assert severity == self.WARNING

    def Builder(self, logger: Any) -> "Builder":
        assert isinstance(logger, self.Logger)
        return Builder(self)

    def OnnxParser(self, network: "Network", logger: Any) -> "Parser":
        assert isinstance(logger, self.Logger)
        return Parser(self, network)

    def Runtime(self, logger: Any) -> "Runtime":
        assert isinstance(logger, self.Logger)
        return Runtime(self)


class Network:
    def __init__(self) -> None:
        self.source: Path | None = None
        self.layers: list[ILayer] = []
        self.inputs: dict[str, int] = {}

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]


class Parser:
    def __init__(self, library: RecordedTensorRT, network: Network) -> None:
        self.library, self.network, self.num_errors = library, network, 0

    def parse_from_file(self, path: str) -> bool:
        assert isinstance(path, str)
        self.library.record("parse_from_file", path)
        if self.library.refused == "parse":
            self.num_errors = 1
            return False
        model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type != "Attention":
                self.network.layers.append(ILayer(LayerType.OTHER))
                continue
            attention = SimpleNamespace(decomposable=False)
            for kind in (LayerType.ATTENTION_INPUT, LayerType.ATTENTION_OUTPUT):
                self.network.layers.append(ILayer(kind, attention))
        self.network.source = Path(path)
        self.network.inputs = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.input}
        return True

    def get_error(self, index: int) -> str:
        assert index == 0
        return "In node 3 (importModel): UNSUPPORTED_NODE: no importer"


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        smallest, best, largest = shapes
        ordered = zip(smallest, best, largest, strict=True)
        assert all(1 <= low <= middle <= high for low, middle, high in ordered)
        self.shapes[name] = list(shapes)


class Cache:
    def __init__(self, content: bytes) -> None:
        assert isinstance(content, bytes)
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content + b"measured;")


class Config:
    def __init__(self, library: RecordedTensorRT) -> None:
        self.library = library
        self.profiles: list[Profile] = []
        self.cache: Cache | None = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert pool is self.library.MemoryPoolType.WORKSPACE
        assert isinstance(size, int)
        self.library.record("set_memory_pool_limit", size)

    def clear_flag(self, flag: Any) -> None:
        self.library.record("clear_flag", flag)

    def add_optimization_profile(self, profile: Profile) -> int:
        if self.library.refused == "profile":
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Cache:
        return Cache(content)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        self.library.record("set_timing_cache", cache.content)
        self.cache = cache
        return not cache.content.startswith(b"of another GPU")

    def get_timing_cache(self) -> Cache:
        assert self.cache is not None
        return self.cache


class Builder:
    def __init__(self, library: RecordedTensorRT) -> None:
        self.library = library

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << 1  # strongly typed, and nothing else
        return Network()

    def create_builder_config(self) -> Config:
        return Config(self.library)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> memoryview | None:
        assert config.profiles
        for profile in config.profiles:
            ranks = {name: len(shapes[0]) for name, shapes in profile.shapes.items()}
            assert ranks == network.inputs, "a dynamic input without a shape in a profile"
        attentions = [la._attention for la in network.layers if la.type is not LayerType.OTHER]
        # As the library: without a fused kernel, an attention that may not decompose is fatal.
        if self.library.refused == "build" or not all(a.decomposable for a in attentions):
            return None
        plan = {
            "version": self.library.__version__,
            "source": str(network.source),
            "profiles": [profile.shapes for profile in config.profiles],
        }
        return memoryview(json.dumps(plan).encode())


class Runtime:
    def __init__(self, library: RecordedTensorRT) -> None:
        self.library = library

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        assert isinstance(plan, bytes)
        fields = json.loads(plan)
        if self.library.refused == "deserialize" or fields["version"] != self.library.__version__:
            return None
        return Engine(self.library, fields)


class Engine:
    def __init__(self, library: RecordedTensorRT, plan: dict[str, Any]) -> None:
        self.library, self.plan = library, plan
        self.session = onnxruntime.InferenceSession(
            plan["source"], providers=["CPUExecutionProvider"]
        )
        graph = onnx.load(plan["source"], load_external_data=False).graph
        self.inputs = {v.name: v.type.tensor_type.elem_type for v in graph.input}
        self.outputs = {v.name: v.type.tensor_type.elem_type for v in graph.output}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.library.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType((self.inputs | self.outputs)[name])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        assert name in self.inputs
        shapes: list[list[int]] = self.plan["profiles"][profile][name]
        return shapes

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH_BYTES * (profile + 1)

    def create_execution_context(self, strategy: Any) -> "Context":
        assert strategy is self.library.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self)


class Context:
    """Checks the order: profile, shapes, memory, addresses, run."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert isinstance(stream, int)
        assert 0 <= profile < self.engine.num_optimization_profiles
        self.engine.library.record("profile", profile)
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile >= 0, "a shape before the profile"
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        bounds = zip(smallest, shape, largest, strict=True)
        return all(low <= size <= high for low, size, high in bounds)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        zeros = {
            key: np.zeros(self.shapes[key], NUMPY[DataType(kind)])
            for key, kind in self.engine.inputs.items()
        }
        (output,) = self.engine.session.run([name], zeros)
        return tuple(output.shape)

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self.addresses[name] = address
        return address != 0

    def execute_async_v3(self, stream: int) -> bool:
        assert isinstance(stream, int)
        assert self.addresses.keys() == self.engine.inputs.keys() | self.engine.outputs.keys()
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert self.scratch[0], "no memory for activations"
        assert self.scratch[1] >= needed, "too little memory for activations"
        self.engine.library.record("execute", self.profile)
        if self.engine.library.refused == "run":
            return False
        inputs = {name: self._memory(name, self.shapes[name]).copy() for name in self.engine.inputs}
        names = list(self.engine.outputs)
        for name, value in zip(names, self.engine.session.run(names, inputs), strict=True):
            self._memory(name, value.shape)[...] = value
        return True

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        kind = np.dtype(NUMPY[self.engine.get_tensor_dtype(name)])
        size = int(np.prod(shape)) * kind.itemsize
        raw = (ctypes.c_byte * size).from_address(self.addresses[name])
        return np.frombuffer(raw, kind).reshape(shape)
