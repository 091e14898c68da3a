"""torchquilt: backend quantizers pieced together into one, and the PyTorch 2 Export flow that runs it.

This file is the list of public names, each with the module that defines it. A name is imported when it
is first used, so ``import torchquilt`` loads next to nothing and ``torchquilt.backends()`` no torch: asking
what is installed is answered at once, also on a machine that has no torch.

A public function must not have the name of a module of this package: Python binds a module to its package
when it is imported, which would hide the function. So ``quantizer()`` lives beside a module ``quantizers``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt._internal.lazy_imports import lazy_names

# For each module, the public names that it defines. The imports below say the same to type checkers, and a
# test holds the two equal.
_PUBLIC = {
    "": ("qat", "recovery"),
    "accuracy.comparison": ("compare",),
    "accuracy.comparison_values": ("Comparison",),
    "accuracy.metric": ("evaluate_on",),
    "accuracy.report": (
        "Report",
        "report",
    ),
    "accuracy.search": ("search",),
    "accuracy.search_values": ("SearchResult",),
    "accuracy.sensitivity": ("sensitivity",),
    "accuracy.sensitivity_values": ("Sensitivity",),
    "accuracy.summary": (
        "Summary",
        "summary",
    ),
    "accuracy.target_values": ("TargetComparison",),
    "accuracy.targets": (
        "compare_targets",
        "targets_with",
    ),
    "artifact": (
        "load",
        "save",
    ),
    "errors": (
        "AccuracyError",
        "AnnotationError",
        "ArtifactError",
        "CalibrationError",
        "CompositionError",
        "IntentError",
        "LedgerError",
        "LoweringError",
        "MissingRuntimeError",
        "ModelError",
        "PatternError",
        "PluginConflictError",
        "PluginError",
        "PluginLoadError",
        "PluginNotFoundError",
        "ProgramError",
        "ProgramInputError",
        "QuantizerError",
        "RecipeError",
        "SharingError",
        "SpecError",
        "TorchquiltError",
        "UnsupportedConfigError",
        "VerificationError",
    ),
    "intent.intent": ("Intent",),
    "ledger.ledger": ("Ledger",),
    "lowering": (
        "LoweredProgram",
        "lower",
    ),
    "plugins.manifest": (
        "Manifest",
        "PresetInfo",
    ),
    "plugins.registry": (
        "Backend",
        "Backends",
        "ForeignBackend",
        "backends",
        "quantizer",
        "targets",
    ),
    "pt2e.annotate": ("explain",),
    "pt2e.calibration.calibrate": ("calibrate",),
    "pt2e.calibration.merging": (
        "Calibration",
        "merge_calibration",
    ),
    "pt2e.calibration.report": (
        "CalibrationReport",
        "calibration_of",
    ),
    "pt2e.convert": ("convert_pt2e",),
    "pt2e.model_record": ("ledger_of",),
    "pt2e.prepare": ("prepare_pt2e",),
    "pt2e.qat.exported": (
        "move_exported_model_to_eval",
        "move_exported_model_to_train",
    ),
    "pt2e.qat.prepare": ("prepare_qat_pt2e",),
    "pt2e.quantize": ("quantize",),
    "quantizers.base": ("Quantizer",),
    "quantizers.composable": ("ComposableQuantizer",),
    "quantizers.pattern_quantizer": ("PatternQuantizer",),
    "recipe": ("Recipe",),
    "spec.annotation": (
        "QuantizationAnnotation",
        "annotate_node",
        "annotation_of",
    ),
    "spec.arithmetic_limits": ("ArithmeticLimits",),
    "spec.config": ("QuantizationConfig",),
    "spec.qspec": (
        "DerivedQuantizationSpec",
        "FixedQParamsQuantizationSpec",
        "QuantizationSpec",
        "SharedQuantizationSpec",
    ),
    "support.allowed_spec": ("AllowedSpec",),
    "support.capabilities": ("Capabilities",),
    "support.capability_row": (
        "Capability",
        "Support",
    ),
    "support.pattern": (
        "Match",
        "OperatorPattern",
        "Reject",
    ),
    "support.table": (
        "Constraint",
        "Refusal",
        "Sharing",
        "SupportRow",
        "SupportTable",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted([*_MODULE_OF, "__version__"])

if TYPE_CHECKING:
    from torchquilt import qat as qat
    from torchquilt import recovery as recovery
    from torchquilt.accuracy.comparison import compare as compare
    from torchquilt.accuracy.comparison_values import Comparison as Comparison
    from torchquilt.accuracy.metric import evaluate_on as evaluate_on
    from torchquilt.accuracy.report import Report as Report
    from torchquilt.accuracy.report import report as report
    from torchquilt.accuracy.search import search as search
    from torchquilt.accuracy.search_values import SearchResult as SearchResult
    from torchquilt.accuracy.sensitivity import sensitivity as sensitivity
    from torchquilt.accuracy.sensitivity_values import Sensitivity as Sensitivity
    from torchquilt.accuracy.summary import Summary as Summary
    from torchquilt.accuracy.summary import summary as summary
    from torchquilt.accuracy.target_values import TargetComparison as TargetComparison
    from torchquilt.accuracy.targets import compare_targets as compare_targets
    from torchquilt.accuracy.targets import targets_with as targets_with
    from torchquilt.artifact import load as load
    from torchquilt.artifact import save as save
    from torchquilt.errors import AccuracyError as AccuracyError
    from torchquilt.errors import AnnotationError as AnnotationError
    from torchquilt.errors import ArtifactError as ArtifactError
    from torchquilt.errors import CalibrationError as CalibrationError
    from torchquilt.errors import CompositionError as CompositionError
    from torchquilt.errors import IntentError as IntentError
    from torchquilt.errors import LedgerError as LedgerError
    from torchquilt.errors import LoweringError as LoweringError
    from torchquilt.errors import MissingRuntimeError as MissingRuntimeError
    from torchquilt.errors import ModelError as ModelError
    from torchquilt.errors import PatternError as PatternError
    from torchquilt.errors import PluginConflictError as PluginConflictError
    from torchquilt.errors import PluginError as PluginError
    from torchquilt.errors import PluginLoadError as PluginLoadError
    from torchquilt.errors import PluginNotFoundError as PluginNotFoundError
    from torchquilt.errors import ProgramError as ProgramError
    from torchquilt.errors import ProgramInputError as ProgramInputError
    from torchquilt.errors import QuantizerError as QuantizerError
    from torchquilt.errors import RecipeError as RecipeError
    from torchquilt.errors import SharingError as SharingError
    from torchquilt.errors import SpecError as SpecError
    from torchquilt.errors import TorchquiltError as TorchquiltError
    from torchquilt.errors import UnsupportedConfigError as UnsupportedConfigError
    from torchquilt.errors import VerificationError as VerificationError
    from torchquilt.intent.intent import Intent as Intent
    from torchquilt.ledger.ledger import Ledger as Ledger
    from torchquilt.lowering import LoweredProgram as LoweredProgram
    from torchquilt.lowering import lower as lower
    from torchquilt.plugins.manifest import Manifest as Manifest
    from torchquilt.plugins.manifest import PresetInfo as PresetInfo
    from torchquilt.plugins.registry import Backend as Backend
    from torchquilt.plugins.registry import Backends as Backends
    from torchquilt.plugins.registry import ForeignBackend as ForeignBackend
    from torchquilt.plugins.registry import backends as backends
    from torchquilt.plugins.registry import quantizer as quantizer
    from torchquilt.plugins.registry import targets as targets
    from torchquilt.pt2e.annotate import explain as explain
    from torchquilt.pt2e.calibration.calibrate import calibrate as calibrate
    from torchquilt.pt2e.calibration.merging import Calibration as Calibration
    from torchquilt.pt2e.calibration.merging import merge_calibration as merge_calibration
    from torchquilt.pt2e.calibration.report import CalibrationReport as CalibrationReport
    from torchquilt.pt2e.calibration.report import calibration_of as calibration_of
    from torchquilt.pt2e.convert import convert_pt2e as convert_pt2e
    from torchquilt.pt2e.model_record import ledger_of as ledger_of
    from torchquilt.pt2e.prepare import prepare_pt2e as prepare_pt2e
    from torchquilt.pt2e.qat.exported import move_exported_model_to_eval as move_exported_model_to_eval
    from torchquilt.pt2e.qat.exported import move_exported_model_to_train as move_exported_model_to_train
    from torchquilt.pt2e.qat.prepare import prepare_qat_pt2e as prepare_qat_pt2e
    from torchquilt.pt2e.quantize import quantize as quantize
    from torchquilt.quantizers.base import Quantizer as Quantizer
    from torchquilt.quantizers.composable import ComposableQuantizer as ComposableQuantizer
    from torchquilt.quantizers.pattern_quantizer import PatternQuantizer as PatternQuantizer
    from torchquilt.recipe import Recipe as Recipe
    from torchquilt.spec.annotation import QuantizationAnnotation as QuantizationAnnotation
    from torchquilt.spec.annotation import annotate_node as annotate_node
    from torchquilt.spec.annotation import annotation_of as annotation_of
    from torchquilt.spec.arithmetic_limits import ArithmeticLimits as ArithmeticLimits
    from torchquilt.spec.config import QuantizationConfig as QuantizationConfig
    from torchquilt.spec.qspec import DerivedQuantizationSpec as DerivedQuantizationSpec
    from torchquilt.spec.qspec import FixedQParamsQuantizationSpec as FixedQParamsQuantizationSpec
    from torchquilt.spec.qspec import QuantizationSpec as QuantizationSpec
    from torchquilt.spec.qspec import SharedQuantizationSpec as SharedQuantizationSpec
    from torchquilt.support.allowed_spec import AllowedSpec as AllowedSpec
    from torchquilt.support.capabilities import Capabilities as Capabilities
    from torchquilt.support.capability_row import Capability as Capability
    from torchquilt.support.capability_row import Support as Support
    from torchquilt.support.pattern import Match as Match
    from torchquilt.support.pattern import OperatorPattern as OperatorPattern
    from torchquilt.support.pattern import Reject as Reject
    from torchquilt.support.table import Constraint as Constraint
    from torchquilt.support.table import Refusal as Refusal
    from torchquilt.support.table import Sharing as Sharing
    from torchquilt.support.table import SupportRow as SupportRow
    from torchquilt.support.table import SupportTable as SupportTable

    __version__: str
else:
    _get, __dir__ = lazy_names(globals(), _MODULE_OF)

    def __getattr__(name: str) -> object:
        return _installed_version() if name == "__version__" else _get(name)


def _installed_version() -> str:
    from importlib_metadata import PackageNotFoundError, version

    try:
        return version("torchquilt")
    except PackageNotFoundError:
        # A source tree on the path that is not installed has no version, and none is made up for it.
        return "0+not.installed"
