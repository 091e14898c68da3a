"""The foreign quantizers that the wheels of torchao and ExecuTorch bring, as their vendors configure them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any


def _of(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _xnnpack(**options: Any) -> Any:
    module = import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    made = module.XNNPACKQuantizer()
    # Patterns of BatchNorm in training match nothing that is folded, but looking for them takes seconds.
    made.SUPPORTED_PATTERNS = [each for each in made.SUPPORTED_PATTERNS if "_bn" not in each.name]
    return made.set_global(module.get_symmetric_quantization_config(**options))


def _inductor(chip: str, **options: Any) -> Any:
    module = import_module(f"torchao.quantization.pt2e.quantizer.{chip}_inductor_quantizer")
    kind = {"x86": "X86", "arm": "Arm", "xpu": "XPU"}[chip]
    config = getattr(module, f"get_default_{chip}_inductor_quantization_config")(**options)
    return getattr(module, f"{kind}InductorQuantizer")().set_global(config)


def _vulkan(**options: Any) -> Any:
    module = import_module("executorch.backends.vulkan.quantizer.vulkan_quantizer")
    return module.VulkanQuantizer().set_global(module.get_symmetric_quantization_config(**options))


def _tosa(bits: str = "8") -> Any:
    module = import_module("executorch.backends.arm.quantizer.arm_quantizer")
    spec = _of("executorch.backends.arm.tosa.specification:TosaSpecification")
    config = {
        "8": module.get_symmetric_quantization_config,
        "16": module.get_symmetric_a16w8_quantization_config,
    }
    text = "TOSA-1.0+INT" if bits == "8" else "TOSA-1.0+INT+int16"
    return module.TOSAQuantizer(spec.create_from_string(text)).set_global(config[bits]())


def _ethosu() -> Any:
    module = import_module("executorch.backends.arm.quantizer.arm_quantizer")
    spec = _of("executorch.backends.arm.ethosu:EthosUCompileSpec")("ethos-u55-128")
    return module.EthosUQuantizer(spec).set_global(module.get_symmetric_quantization_config())


def _vgf() -> Any:
    module = import_module("executorch.backends.arm.quantizer.arm_quantizer")
    spec = _of("executorch.backends.arm.vgf:VgfCompileSpec")()
    return module.VgfQuantizer(spec).set_global(module.get_symmetric_quantization_config())


def _copy_of(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return copy.deepcopy(make(*arguments, **options))  # matching changes it


def _coreml() -> Any:
    quantizer = import_module("executorch.backends.apple.coreml.quantizer.coreml_quantizer")
    found = import_module("coremltools.optimize.torch.quantization.quantization_config")
    patterns = import_module("executorch.backends.apple.coreml.quantizer._coreml_quantizer_utils")
    # It exports hundreds of patterns for each model, which takes minutes. They are the same each time.
    for name in [name for name in vars(patterns) if name.startswith("get_") and name.endswith("_pattern")]:
        make = getattr(patterns, name)
        if not isinstance(make, functools.partial):
            setattr(patterns, name, functools.partial(_copy_of, functools.cache(make)))
    options = {"quantization_scheme": found.QuantizationScheme.symmetric}
    return quantizer.CoreMLQuantizer(found.LinearQuantizerConfig.from_dict({"global_config": options}))


VENDORS: dict[str, Callable[[], Any]] = {
    "xnnpack per channel": lambda: _xnnpack(is_per_channel=True),
    "xnnpack per tensor": lambda: _xnnpack(),
    "xnnpack dynamic": lambda: _xnnpack(is_per_channel=True, is_dynamic=True),
    "x86_inductor": lambda: _inductor("x86"),
    "x86_inductor dynamic": lambda: _inductor("x86", is_dynamic=True),
    "arm_inductor": lambda: _inductor("arm"),
    "xpu_inductor": lambda: _inductor("xpu"),
    "embedding": lambda: _of("torchao.quantization.pt2e.quantizer.embedding_quantizer:EmbeddingQuantizer")(),
    "vulkan": lambda: _vulkan(is_dynamic=False),
    "vulkan dynamic": lambda: _vulkan(is_dynamic=True),
    "samsung": lambda: _of("executorch.backends.samsung.quantizer.quantizer:EnnQuantizer")(),
    "qualcomm": lambda: _of("executorch.backends.qualcomm.quantizer.quantizer:QnnQuantizer")(),
    "cadence": lambda: _of("executorch.backends.cadence.aot.quantizer.quantizer:CadenceDefaultQuantizer")(),
    "cadence fused": lambda: _of(
        "executorch.backends.cadence.aot.quantizer.quantizer:CadenceFusedConvReluQuantizer"
    )(),
    "example": lambda: _of("executorch.backends.example.example_quantizer:ExampleQuantizer")(),
    "openvino_nncf": lambda: _of("executorch.backends.openvino.quantizer.quantizer:OpenVINOQuantizer")(),
}

#: Those that take a minute of a process before they annotate their first model.
SLOW: dict[str, Callable[[], Any]] = {"coreml": _coreml}

#: Those that import ``tosa_serializer``, which pins other versions of packages than the tests use.
OF_ARM: dict[str, Callable[[], Any]] = {
    "cortex_m": lambda: _of("executorch.backends.cortex_m.quantizer.quantizer:CortexMQuantizer")(),
    "arm_tosa": _tosa,
    "arm_tosa 16 bits": lambda: _tosa("16"),
    "arm_ethosu": _ethosu,
    "arm_vgf": _vgf,
}
