"""The real package `tensorrt.plugin` of the bindings wheel, over a stand-in for the compiled `tensorrt` under it, whose
libraries cannot be installed here. Expressions are numbers: what TensorRT would compute for one shape."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 2


class DimensionOperation(Enum):
    SUM = 0
    PROD = 1
    CEIL_DIV = 2
    FLOOR_DIV = 3


class Expression:
    """A trt.IDimensionExpr that is a number."""

    def __init__(self, value: int) -> None:
        self.value = value


class Builder:
    """A trt.IExprBuilder over numbers."""

    def constant(self, value: int) -> Expression:
        return Expression(value)

    def operation(self, op: DimensionOperation, first: Expression, second: Expression) -> Expression:
        a, b = first.value, second.value
        operations = {
            DimensionOperation.SUM: lambda: a + b,
            DimensionOperation.PROD: lambda: a * b,
            DimensionOperation.CEIL_DIV: lambda: -(-a // b),
            DimensionOperation.FLOOR_DIV: lambda: a // b,
        }
        return Expression(operations[op]())


class TensorDescriptor:
    """A trt.DynamicPluginTensorDesc whose first axis is dynamic."""

    def __init__(self, shape: tuple[int, ...], dtype: DataType, dynamic: bool = True) -> None:
        dims = (-1, *shape[1:]) if dynamic else shape
        self.desc = SimpleNamespace(dims=dims, type=dtype, format="LINEAR", scale=0.0)
        self.opt = self.min = self.max = shape


class Dims(tuple[int, ...]):
    """A trt.Dims: of a length, or of sizes."""

    MAX_DIMS = 8

    def __new__(cls, sizes: Any) -> "Dims":
        return super().__new__(cls, (0,) * sizes if isinstance(sizes, int) else sizes)


class Host(ModuleType):
    """The compiled module: the few classes that matter here, and empty ones by any other name."""

    DataType = DataType
    Dims = Dims
    DimensionOperation = DimensionOperation
    IDimensionExpr = Expression
    DynamicPluginTensorDesc = TensorDescriptor
    TensorFormat = SimpleNamespace(LINEAR="LINEAR")

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.creators: dict[tuple[str, str], Any] = {}
        self.PluginField = lambda name, data, kind: SimpleNamespace(name=name, data=data)
        self.PluginFieldCollection = list
        self.QuickPluginCreationRequest = SimpleNamespace(STRICT_AOT=1, STRICT_JIT=2, PREFER_AOT=3, PREFER_JIT=4)
        self.DimsExprs = lambda length: [None] * length

    def get_plugin_registry(self) -> Any:
        def register(creator: Any, namespace: str) -> None:
            self.creators[creator.name, namespace] = creator

        return SimpleNamespace(
            register_creator=register, get_creator=lambda name, version, namespace: self.creators[name, namespace]
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Any,), {})
        setattr(self, name, made)
        return made


class _AnyType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Any(metaclass=_AnyType):
    """A class of the compiled module that has nothing to do here."""

    def __init__(self, *arguments: object) -> None: ...

    def log(self, *arguments: object) -> None: ...


@contextmanager
def plugin_package() -> Iterator[tuple[Any, Host]]:
    """The package as `import tensorrt.plugin` would give it, for as long as the context lasts."""
    found = importlib.util.find_spec("tensorrt_bindings")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "plugin"
    host = Host()
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt"}
    sys.modules["tensorrt"] = host
    try:
        spec = importlib.util.spec_from_file_location(
            "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["tensorrt.plugin"] = package
        host.plugin = package
        spec.loader.exec_module(package)
        yield package, host
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
            del sys.modules[name]
        sys.modules.update(before)
