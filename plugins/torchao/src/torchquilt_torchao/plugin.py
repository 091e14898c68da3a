"""Manifest of the bridge. Imports no torch, since every listing imports this module."""

from collections.abc import Iterator

from torchquilt.backend import ForeignInfo, Manifest, Requirement, hookimpl

_OF_TORCHAO = "torchao.quantization.pt2e.quantizer"
_OF_EXECUTORCH = "executorch.backends"

_TOSA = Requirement("tosa-tools", "pip install tosa-tools", module="tosa_serializer")
_NNCF = Requirement("NNCF", "pip install nncf openvino", module="nncf")
_COREML = Requirement("coremltools", "pip install coremltools", module="coremltools")
_NEUTRON = Requirement(
    "eIQ Neutron SDK", "pip install --index-url https://eiq.nxp.com/repository eiq-neutron-sdk",
    module="eiq_neutron_sdk",
)  # fmt: skip
_MTK = Requirement(
    "NeuroPilot SDK", "the wheel mtk_converter of https://neuropilot.mediatek.com", module="mtk_converter"
)  # fmt: skip
_VELA = Requirement("Vela", "pip install ethos-u-vela", module="ethosu.vela", to_lower=True)
_VGF = Requirement(
    "model converter", "pip install ai_ml_sdk_model_converter", module="model_converter", to_lower=True
)  # fmt: skip
_QNN = Requirement(
    "Qualcomm AI Engine Direct", "its SDK, of https://softwarecenter.qualcomm.com, where QNN_SDK_ROOT says",
    variable="QNN_SDK_ROOT", to_lower=True,
)  # fmt: skip
_ENN = Requirement(
    "Exynos AI LiteCore", "its SDK, of https://soc-developer.semiconductor.samsung.com, where "
    "EXYNOS_AI_LITECORE_ROOT says", variable="EXYNOS_AI_LITECORE_ROOT", to_lower=True,
)  # fmt: skip
_XTENSA = Requirement(
    "Xtensa tools", "of Cadence, where XTENSA_TOOLCHAIN says", variable="XTENSA_TOOLCHAIN", to_lower=True
)  # fmt: skip

# Name → module and class below the package above it, for what it quantizes, and what else it needs.
_TORCHAO = {
    "x86_inductor_torchao": ("x86_inductor_quantizer:X86InductorQuantizer", "Inductor on x86 CPUs", ()),
    "arm_inductor_torchao": ("arm_inductor_quantizer:ArmInductorQuantizer", "Inductor on Arm CPUs", ()),
    "xpu_inductor_torchao": ("xpu_inductor_quantizer:XPUInductorQuantizer", "Inductor on Intel GPUs", ()),
    "embedding_torchao": ("embedding_quantizer:EmbeddingQuantizer", "8-bit embedding tables", ()),
}
_EXECUTORCH = {
    "arm_tosa": ("arm.quantizer.arm_quantizer:TOSAQuantizer", "TOSA, of Arm", (_TOSA,)),
    "arm_ethosu": ("arm.quantizer.arm_quantizer:EthosUQuantizer", "NPUs of Arm", (_TOSA, _VELA)),
    "arm_vgf": ("arm.quantizer.arm_quantizer:VgfQuantizer", "GPUs of Arm, by Vulkan", (_TOSA, _VGF)),
    "cortex_m": ("cortex_m.quantizer.quantizer:CortexMQuantizer", "microcontrollers of Arm", (_TOSA,)),
    "openvino_nncf": ("openvino.quantizer.quantizer:OpenVINOQuantizer", "OpenVINO, by NNCF", (_NNCF,)),
    "vulkan": ("vulkan.quantizer.vulkan_quantizer:VulkanQuantizer", "GPUs, by Vulkan", ()),
    "qualcomm": ("qualcomm.quantizer.quantizer:QnnQuantizer", "NPUs of Qualcomm", (_QNN,)),
    "samsung": ("samsung.quantizer.quantizer:EnnQuantizer", "NPUs of Samsung", (_ENN,)),
    "cadence": (
        "cadence.aot.quantizer.quantizer:CadenceDefaultQuantizer",
        "DSPs of Cadence; strict exports",
        (_XTENSA,),
    ),
    "nxp": ("nxp.quantizer.neutron_quantizer:NeutronQuantizer", "NPUs of NXP", (_NEUTRON,)),
    "mediatek": ("mediatek.quantizer.quantizer:NeuropilotQuantizer", "NPUs of MediaTek", (_MTK,)),
    "coreml": ("apple.coreml.quantizer:CoreMLQuantizer", "devices of Apple", (_COREML,)),
    "xnnpack_executorch": ("xnnpack.quantizer.xnnpack_quantizer:XNNPACKQuantizer", "CPUs, by XNNPACK", ()),
}


def _foreign() -> Iterator[ForeignInfo]:
    """The quantizers in the wheels of torchao and ExecuTorch."""
    packages = (("torchao", _OF_TORCHAO, _TORCHAO), ("executorch", _OF_EXECUTORCH, _EXECUTORCH))
    for distribution, prefix, found in packages:
        for name, (path, summary, needs) in found.items():
            yield ForeignInfo(
                name=name,
                summary=summary,
                distribution=distribution,
                quantizer=f"{prefix}.{path}",
                needs=needs,
            )


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="torchao",
        api=1,
        summary="quantizers written for torchao's PT2E flow, in torchquilt's, and the other way round",
        wraps={"torchao": "torchquilt_torchao.foreign_quantizer:foreign"},
        foreign=tuple(_foreign()),
    )
