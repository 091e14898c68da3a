"""Public face for the authors of backends and lowering targets.

A plugin imports ``torchquilt``, this module, ``torchquilt.errors`` and ``torchquilt.observers``, and nothing
else of the core: these stay as they are within a minor version, whatever moves behind them.

- To be found: ``Manifest``, ``PresetInfo``, ``hookimpl``; ``ForeignInfo`` and ``Requirement`` of a bridge;
  ``lazy_names`` for a package without torch.
- Specs: ``QuantizationSpec`` and its kinds, ``QuantizationConfig``, ``ROLES``, ``ArithmeticLimits``.
- The table: ``SupportTable``, ``SupportRow``, ``OperatorPattern``, ``AllowedSpec``, ``Constraint``,
  ``Refusal``, ``Sharing``; ``operators``, and ready conditions such as ``CONSTANT_WEIGHT``.
- The quantizer: ``PatternQuantizer``, or ``Quantizer`` with ``annotate_node``; ``Claim`` and ``Intent``.
- Facts about a node: ``overload_name``, ``arguments_of``, ``tensor_of``, ``rank``, ``constant_value``, …
- Quantize and dequantize operators: ``qdq_of`` reads one; ``is_quantize``, ``is_dequantize``, ….
- Rewriting: ``write_as``, ``call_before``, ``call_behind``, ``read_tensor``, ``erase_unused``, …
- Lowering: ``Contribution`` and ``Kernel`` for a backend; ``Target``, ``Lowered``, ``Operation``,
  ``Conversion``, ``Runner`` and ``Slot`` for a target; ``StoredRunner`` as the base of its runner;
  ``ProfilingRunner`` and ``ObservableRunner`` for one that tells times and values.

A name is imported when it is first used, so a manifest can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt._internal.lazy_imports import lazy_names as lazy_names

# For each module, its public names. The imports below say the same to type checkers, as a test holds.
_PUBLIC = {
    # To be found: the manifest, which a listing reads without torch.
    "plugins.manifest": ("ForeignInfo", "Manifest", "PresetInfo", "Requirement"),
    "plugins.hookspecs": ("hookimpl",),
    # Specs and configs: the integers of a tensor, and a spec for each role.
    "spec.qspec": (
        "QuantizationSpec",
        "SharedQuantizationSpec",
        "DerivedQuantizationSpec",
        "FixedQParamsQuantizationSpec",
        "Granularity",
        "ZeroPointDomain",
        "EdgeOrNode",
    ),
    "spec.dtypes": ("INTEGER_RANGES",),
    "spec.config": ("ROLES", "QuantizationConfig"),
    "spec.arithmetic_limits": ("ArithmeticLimits",),
    # The table: patterns of operators, the specs that a row takes, and its conditions.
    "support.table": ("SupportTable", "SupportRow", "Constraint", "Refusal", "Rewrite", "Sharing"),
    "support.allowed_spec": ("AllowedSpec",),
    "support.pattern": ("OperatorPattern", "Match", "Reject"),
    "support.parts": ("Part", "Value", "part"),
    "support": ("constraints", "operators", "rewrites"),
    "support.call_facts": ("argument", "is_pointwise", "is_split"),
    "support.operators": ("OPERATORS", "Operator", "Operand"),
    "support.constraints": (
        "CONSTANT_WEIGHT",
        "FLOAT32",
        "input_rank",
        "keyword_is",
        "one_dtype",
    ),
    "support.capabilities": ("Capabilities",),
    # The quantizer, and what users asked of it.
    "quantizers.base": ("Quantizer", "as_quantizer"),
    "quantizers.pattern_quantizer": ("PatternQuantizer",),
    "quantizers.claim": ("Claim",),
    "intent.intent": ("Intent",),
    "spec.annotation": ("QuantizationAnnotation", "annotate_node", "annotation_of"),
    # Facts about a node. They read, and never write.
    "graph.node_values": (
        "arguments_of",
        "attribute",
        "is_constant",
        "is_empty",
        "is_float_tensor",
        "overload_name",
        "rank",
        "tensor_of",
    ),
    "graph.constant_folding": ("constant_value",),
    "graph.qdq": (
        "QDQ",
        "chooses_qparams",
        "dequantize_of",
        "is_conversion",
        "is_dequantize",
        "is_quantize",
        "qdq_of",
        "qdq_operators",
        "quantize_of",
        "choosing_call",
        "operators_of",
    ),
    "graph.module_scope": ("module_path",),
    # All that is decided about a model, for a flow other than this one.
    "pt2e.annotate": ("Annotated", "annotate_copy"),
    "pt2e.integer_constants": ("integers_of",),
    # Instead of an observer point, in ``prepare_obs_or_fq_callback``.
    "pt2e.observer_points": ("ObservedPoint",),
    "graph.subgraphs": ("Region", "regions"),
    # The node of the exported program that a node of a later program comes from.
    "graph.origins": ("Origins", "chain", "subgraph_names"),
    # Rewriting: write a match in the form that the backend wants.
    "graph.edits": (
        "call_before",
        "call_behind",
        "copied_graph",
        "erase_unused",
        "fake_like",
        "free_name",
        "own_copy",
        "read_tensor",
        "store_tensor",
        "take_origin",
        "with_graph",
        "write_as",
        "write_as_another_shape",
    ),
    # Lowering: what a backend contributes to a target, and the protocol of a target.
    "lowering.target": (
        "Arithmetic",
        "Constant",
        "Contribution",
        "Conversion",
        "DividedTarget",
        "Kernel",
        "KernelTime",
        "LabellingTarget",
        "Lowered",
        "ObservableRunner",
        "Operation",
        "ProfilingRunner",
        "Runner",
        "RunTimes",
        "Slot",
        "Target",
        "TryingTarget",
    ),
    "lowering.contributed": ("after_passes",),
    "lowering.stored_runner": ("StoredFacts", "StoredRunner"),
    "lowering.float_marks": ("stays_in_float",),
    # Passes of targets whose runtimes lack an operator.
    "lowering.pool_divisors": ("without_pool_divisors",),
    "lowering.ledger_join": ("node_in_words",),
    # Capabilities of a quantizer that has no table, found out by trying it.
    "testing.probe_cache": ("Subject",),
    "testing.probing": ("probe",),
    # Private API of torch, by way of one module of the core.
    "_internal.torch_private": (
        "FakeTensor",
        "FakeTensorMode",
        "HigherOrderOperator",
        "OpOverload",
        "bound_sympy",
        "pytree",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted([*_MODULE_OF, "lazy_names"])

if TYPE_CHECKING:
    from torchquilt._internal.torch_private import FakeTensor as FakeTensor
    from torchquilt._internal.torch_private import FakeTensorMode as FakeTensorMode
    from torchquilt._internal.torch_private import HigherOrderOperator as HigherOrderOperator
    from torchquilt._internal.torch_private import OpOverload as OpOverload
    from torchquilt._internal.torch_private import bound_sympy as bound_sympy
    from torchquilt._internal.torch_private import pytree as pytree
    from torchquilt.graph.constant_folding import constant_value as constant_value
    from torchquilt.graph.edits import call_before as call_before
    from torchquilt.graph.edits import call_behind as call_behind
    from torchquilt.graph.edits import copied_graph as copied_graph
    from torchquilt.graph.edits import erase_unused as erase_unused
    from torchquilt.graph.edits import fake_like as fake_like
    from torchquilt.graph.edits import free_name as free_name
    from torchquilt.graph.edits import own_copy as own_copy
    from torchquilt.graph.edits import read_tensor as read_tensor
    from torchquilt.graph.edits import store_tensor as store_tensor
    from torchquilt.graph.edits import take_origin as take_origin
    from torchquilt.graph.edits import with_graph as with_graph
    from torchquilt.graph.edits import write_as as write_as
    from torchquilt.graph.edits import write_as_another_shape as write_as_another_shape
    from torchquilt.graph.module_scope import module_path as module_path
    from torchquilt.graph.node_values import arguments_of as arguments_of
    from torchquilt.graph.node_values import attribute as attribute
    from torchquilt.graph.node_values import is_constant as is_constant
    from torchquilt.graph.node_values import is_empty as is_empty
    from torchquilt.graph.node_values import is_float_tensor as is_float_tensor
    from torchquilt.graph.node_values import overload_name as overload_name
    from torchquilt.graph.node_values import rank as rank
    from torchquilt.graph.node_values import tensor_of as tensor_of
    from torchquilt.graph.origins import Origins as Origins
    from torchquilt.graph.origins import chain as chain
    from torchquilt.graph.origins import subgraph_names as subgraph_names
    from torchquilt.graph.qdq import QDQ as QDQ
    from torchquilt.graph.qdq import chooses_qparams as chooses_qparams
    from torchquilt.graph.qdq import choosing_call as choosing_call
    from torchquilt.graph.qdq import dequantize_of as dequantize_of
    from torchquilt.graph.qdq import is_conversion as is_conversion
    from torchquilt.graph.qdq import is_dequantize as is_dequantize
    from torchquilt.graph.qdq import is_quantize as is_quantize
    from torchquilt.graph.qdq import operators_of as operators_of
    from torchquilt.graph.qdq import qdq_of as qdq_of
    from torchquilt.graph.qdq import qdq_operators as qdq_operators
    from torchquilt.graph.qdq import quantize_of as quantize_of
    from torchquilt.graph.subgraphs import Region as Region
    from torchquilt.graph.subgraphs import regions as regions
    from torchquilt.intent.intent import Intent as Intent
    from torchquilt.lowering.contributed import after_passes as after_passes
    from torchquilt.lowering.float_marks import stays_in_float as stays_in_float
    from torchquilt.lowering.ledger_join import node_in_words as node_in_words
    from torchquilt.lowering.pool_divisors import without_pool_divisors as without_pool_divisors
    from torchquilt.lowering.stored_runner import StoredFacts as StoredFacts
    from torchquilt.lowering.stored_runner import StoredRunner as StoredRunner
    from torchquilt.lowering.target import Arithmetic as Arithmetic
    from torchquilt.lowering.target import Constant as Constant
    from torchquilt.lowering.target import Contribution as Contribution
    from torchquilt.lowering.target import Conversion as Conversion
    from torchquilt.lowering.target import DividedTarget as DividedTarget
    from torchquilt.lowering.target import Kernel as Kernel
    from torchquilt.lowering.target import KernelTime as KernelTime
    from torchquilt.lowering.target import LabellingTarget as LabellingTarget
    from torchquilt.lowering.target import Lowered as Lowered
    from torchquilt.lowering.target import ObservableRunner as ObservableRunner
    from torchquilt.lowering.target import Operation as Operation
    from torchquilt.lowering.target import ProfilingRunner as ProfilingRunner
    from torchquilt.lowering.target import Runner as Runner
    from torchquilt.lowering.target import RunTimes as RunTimes
    from torchquilt.lowering.target import Slot as Slot
    from torchquilt.lowering.target import Target as Target
    from torchquilt.lowering.target import TryingTarget as TryingTarget
    from torchquilt.plugins.hookspecs import hookimpl as hookimpl
    from torchquilt.plugins.manifest import ForeignInfo as ForeignInfo
    from torchquilt.plugins.manifest import Manifest as Manifest
    from torchquilt.plugins.manifest import PresetInfo as PresetInfo
    from torchquilt.plugins.manifest import Requirement as Requirement
    from torchquilt.pt2e.annotate import Annotated as Annotated
    from torchquilt.pt2e.annotate import annotate_copy as annotate_copy
    from torchquilt.pt2e.integer_constants import integers_of as integers_of
    from torchquilt.pt2e.observer_points import ObservedPoint as ObservedPoint
    from torchquilt.quantizers.base import Quantizer as Quantizer
    from torchquilt.quantizers.base import as_quantizer as as_quantizer
    from torchquilt.quantizers.claim import Claim as Claim
    from torchquilt.quantizers.pattern_quantizer import PatternQuantizer as PatternQuantizer
    from torchquilt.spec.annotation import QuantizationAnnotation as QuantizationAnnotation
    from torchquilt.spec.annotation import annotate_node as annotate_node
    from torchquilt.spec.annotation import annotation_of as annotation_of
    from torchquilt.spec.arithmetic_limits import ArithmeticLimits as ArithmeticLimits
    from torchquilt.spec.config import ROLES as ROLES
    from torchquilt.spec.config import QuantizationConfig as QuantizationConfig
    from torchquilt.spec.dtypes import INTEGER_RANGES as INTEGER_RANGES
    from torchquilt.spec.qspec import DerivedQuantizationSpec as DerivedQuantizationSpec
    from torchquilt.spec.qspec import EdgeOrNode as EdgeOrNode
    from torchquilt.spec.qspec import FixedQParamsQuantizationSpec as FixedQParamsQuantizationSpec
    from torchquilt.spec.qspec import Granularity as Granularity
    from torchquilt.spec.qspec import QuantizationSpec as QuantizationSpec
    from torchquilt.spec.qspec import SharedQuantizationSpec as SharedQuantizationSpec
    from torchquilt.spec.qspec import ZeroPointDomain as ZeroPointDomain
    from torchquilt.support import constraints as constraints
    from torchquilt.support import operators as operators
    from torchquilt.support import rewrites as rewrites
    from torchquilt.support.allowed_spec import AllowedSpec as AllowedSpec
    from torchquilt.support.call_facts import argument as argument
    from torchquilt.support.call_facts import is_pointwise as is_pointwise
    from torchquilt.support.call_facts import is_split as is_split
    from torchquilt.support.capabilities import Capabilities as Capabilities
    from torchquilt.support.constraints import CONSTANT_WEIGHT as CONSTANT_WEIGHT
    from torchquilt.support.constraints import FLOAT32 as FLOAT32
    from torchquilt.support.constraints import input_rank as input_rank
    from torchquilt.support.constraints import keyword_is as keyword_is
    from torchquilt.support.constraints import one_dtype as one_dtype
    from torchquilt.support.operators import OPERATORS as OPERATORS
    from torchquilt.support.operators import Operand as Operand
    from torchquilt.support.operators import Operator as Operator
    from torchquilt.support.parts import Part as Part
    from torchquilt.support.parts import Value as Value
    from torchquilt.support.parts import part as part
    from torchquilt.support.pattern import Match as Match
    from torchquilt.support.pattern import OperatorPattern as OperatorPattern
    from torchquilt.support.pattern import Reject as Reject
    from torchquilt.support.table import Constraint as Constraint
    from torchquilt.support.table import Refusal as Refusal
    from torchquilt.support.table import Rewrite as Rewrite
    from torchquilt.support.table import Sharing as Sharing
    from torchquilt.support.table import SupportRow as SupportRow
    from torchquilt.support.table import SupportTable as SupportTable
    from torchquilt.testing.probe_cache import Subject as Subject
    from torchquilt.testing.probing import probe as probe
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
