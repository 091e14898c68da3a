"""The quantizer made of a support table and an intent: it annotates and answers queries from both.

Importing this module does not import torch, so the query for a backend's capabilities is quick.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torchquilt.errors import IntentError, TorchquiltError, UnsupportedConfigError, did_you_mean
from torchquilt.graph.node_values import overload_name
from torchquilt.graph.subgraphs import regions
from torchquilt.intent.intent import Intent
from torchquilt.intent.rules import GlobalRule, ObjectTypeRule, Rule
from torchquilt.quantizers.annotated_claim import annotate_claim
from torchquilt.quantizers.base import Quantizer, inherits
from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.matching import GraphFacts, Matcher
from torchquilt.quantizers.unmet_rules import telling_rejects, unmet_rules
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.config import QuantizationConfig
from torchquilt.spec.dtypes import named_dtypes
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.capability_row import Capability
from torchquilt.support.object_type import ObjectType, object_type
from torchquilt.support.operators import OPERATORS
from torchquilt.support.pattern import Reject
from torchquilt.support.table import SupportRow, SupportTable

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node
    from typing_extensions import Self


class PatternQuantizer(Quantizer):
    """A quantizer that is a support table and an intent, and nothing else.

    A backend derives from it and sets ``TABLE`` and ``PRESETS``. It can be used as it is, too::

        PatternQuantizer(table).set_global(config)

    Args:
        table: the support table; by default the ``TABLE`` of the class.
    """

    #: The support table of the backend.
    TABLE: ClassVar[SupportTable | None] = None
    #: Name → function that makes the config, for :meth:`from_preset`.
    PRESETS: ClassVar[Mapping[str, Callable[[], QuantizationConfig]]] = {}

    def __init__(self, table: SupportTable | None = None) -> None:
        if table is None and self.TABLE is None:
            raise IntentError(
                f"{type(self).__name__} has no support table.",
                expected="a SupportTable",
                got=None,
                remedy="pass one, or set TABLE on the class",
            )
        # Apart from the class's table, which is not pickled with each instance.
        self._own_table = table
        self.intent = Intent()

    @property
    def table(self) -> SupportTable:
        """Support table."""
        found = self._own_table or self.TABLE
        assert found is not None
        return found

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """An instance whose global config is the preset of this name.

        Raises:
            UnsupportedConfigError: the backend has no such preset; the error lists its presets.
        """
        if name not in cls.PRESETS:
            raise UnsupportedConfigError(
                f"{cls.__name__} has no preset {name!r}.",
                quantizer=cls.__name__,
                expected=" | ".join(cls.PRESETS) or "no presets",
                got=name,
                remedy=did_you_mean(str(name), cls.PRESETS),
            )
        return cls().set_global(cls.PRESETS[name]())

    @classmethod
    def backend_capabilities(cls) -> Capabilities:
        """All capabilities of the backend, whatever the rules of an instance are."""
        if cls.TABLE is None:
            return Capabilities()
        with named_dtypes():  # the answer needs no torch
            presets = {name: make() for name, make in cls.PRESETS.items()}
        return cls.TABLE.capabilities(presets)

    # The rules. Each method returns the quantizer itself, so that calls can be chained.

    def set_global(self, config: QuantizationConfig | None) -> Self:
        """Ask for a config wherever no other rule decides; None asks for nothing there.

        Raises:
            UnsupportedConfigError: no row of the backend takes this config.
        """
        self.intent = self.intent.with_global(self._checked(config))
        return self

    def set_object_type(self, object_type_: object, config: QuantizationConfig | None) -> Self:
        """Ask for a config at each node that comes from a type; None leaves these nodes in float.

        Args:
            object_type_: a module class (everything inside such modules), a functional such as
                ``torch.nn.functional.linear``, or an ATen operator such as ``torch.ops.aten.linear.default``.
                A class means exactly that class, as in PyTorch's own quantizers: a derived class may compute
                something else. For a derived class, name it, or the operators in it.
            config: the config for these nodes, or None.

        Raises:
            IntentError: the type is none of these, a function that is not one operator, or an operator that
                the backend has no row for.
            UnsupportedConfigError: no row of the backend takes this config for this type.
        """
        kind = object_type(object_type_, self._operators())
        if kind.kind != "module" and not kind.overloads:
            raise IntentError(
                f"{kind.name} is not one operator of ATen: export writes it as others.",
                quantizer=self.name,
                expected="a function that is one operator, an operator, or a module class",
                got=kind.name,
                remedy="name the operators that it becomes; tq.explain(exported, quantizer) lists a model's",
            )
        if config is not None:
            self._check_is_known(kind)
        self.intent = self.intent.with_type(kind, self._checked(config, kind))
        return self

    def set_module_type(self, module_type: object, config: QuantizationConfig | None) -> Self:
        """Ask for a config in modules of a class: :meth:`set_object_type` under PyTorch's own name."""
        return self.set_object_type(module_type, config)

    def set_operator_type(self, operator_type: object, config: QuantizationConfig | None) -> Self:
        """Ask for a config at an operator: :meth:`set_object_type` under PyTorch's own name."""
        return self.set_object_type(operator_type, config)

    def set_module_name(self, name: str, config: QuantizationConfig | None) -> Self:
        """Ask for a config in the module of this name and all modules in it; None leaves them in float.

        Args:
            name: as in ``model.named_modules()``: ``"encoder.layer.0"``. ``layer.1`` is not ``layer.10``.
                ``*`` stands for one part between dots: ``"encoder.layer.*.output"``.
            config: the config for this module, or None.

        Raises:
            IntentError: the name is not a string.
            UnsupportedConfigError: no row of the backend takes this config.
        """
        if not isinstance(name, str):
            raise IntentError(
                "The name of a module is a string.",
                quantizer=self.name,
                expected="a name as in model.named_modules()",
                got=repr(name),
                remedy="use set_object_type for a class or an operator",
            )
        self.intent = self.intent.with_name(name, self._checked(config))
        return self

    def set_filter_function(self, function: Callable[[Node], bool] | None) -> Self:
        """Quantize only where this function returns true for every node of the match."""
        self.intent = self.intent.with_filter(function)
        return self

    def asks_for(self, node: Node) -> bool:
        """Whether a rule with a config applies to a node.

        ``transform_for_annotation`` of a backend leaves the other nodes as they are.
        """
        rule = self.intent.rule_for(node)
        return rule is not None and rule.config is not None and self.intent.passes_filter(node)

    def _operators(self) -> tuple[Any, ...]:
        """The operators of the table, which may be the backend's own, and all operators of the core."""
        own = (operator for row in self.table.rows for operator in row.pattern.operators)
        return tuple(dict.fromkeys((*own, *OPERATORS)))

    def _rows_with(self, kind: ObjectType) -> tuple[SupportRow, ...]:
        """The rows that a rule about a type can apply to: all, if the type is a class of the user's own."""
        if kind.kind == "module" and not any(kind.name in operator.modules for operator in OPERATORS):
            return self.table.rows
        return tuple(
            row
            for row in self.table.rows
            if any(
                kind.name in operator.modules or not set(kind.overloads).isdisjoint(operator.overloads)
                for operator in row.pattern.operators
            )
        )

    def _check_is_known(self, kind: ObjectType) -> None:
        """Refuse a type that the table has no row for."""
        refusal = self.table.refusal_of(kind)
        if refusal is not None:
            raise IntentError(
                f"{self.table.backend} refuses {kind.name}: {refusal.text}.",
                quantizer=self.name,
                expected=", ".join(dict.fromkeys(row.pattern.working.name for row in self.table.rows)),
                got=kind.name,
                remedy="pass None to leave it in float, or compose a quantizer that supports it",
            )
        if self._rows_with(kind):
            return
        known = dict.fromkeys(operator.name for row in self.table.rows for operator in row.pattern.operators)
        near = difflib.get_close_matches(kind.name.rpartition(".")[2].lower(), known, n=3)
        raise IntentError(
            f"{self.table.backend} has no row for {kind.name}.",
            quantizer=self.name,
            expected=", ".join(known),
            got=kind.name,
            remedy=(f"did you mean {' or '.join(near)}? Otherwise " if near else "")
            + "pass None to leave it in float, or compose a quantizer that supports it",
        )

    def _checked(
        self, config: QuantizationConfig | None, kind: ObjectType | None = None
    ) -> QuantizationConfig | None:
        """Check that a row (of a type, if one is given) takes a config, and return the config."""
        if config is None:
            return None
        if not isinstance(config, QuantizationConfig):
            raise IntentError(
                "A rule asks for a QuantizationConfig of torchquilt, or for None.",
                quantizer=self.name,
                expected="torchquilt.QuantizationConfig | None",
                got=f"{type(config).__module__}.{type(config).__qualname__}",
                remedy="make the config with a function of the plugin",
            )
        rows = self.table.rows if kind is None else self._rows_with(kind)
        gaps = [(row, row.differences(config)) for row in rows]
        row, nearest = min(gaps, key=lambda gap: (len(gap[1]), len(gap[0].pattern.operators)))
        if nearest:
            about = f" for {kind.name}" if kind else ""
            presets = [name for name, make in self.PRESETS.items() if _is_taken(rows, make())]
            raise UnsupportedConfigError(
                f"{self.table.backend} has no row{about} that takes this config.",
                quantizer=self.name,
                expected=f"nearest is {row.pattern.name} ({row.mode})",
                got="; ".join(nearest),
                remedy=f"presets that it takes: {', '.join(presets)}" if presets else None,
            )
        return config

    # The query and the annotation, both from the table.

    def quantization_capabilities(self) -> Capabilities:
        """The rows that the rules ask for, each with its rule. Empty if no rule asks for a config.

        A rule about an operator yields the rows of that operator. A rule about a module name, or about a
        class of the user's own, yields every row that takes the config.
        """
        found: list[Capability] = []
        presets = {name: make() for name, make in self.PRESETS.items()}
        filtered = " (filtered)" if self.intent.filter_function else ""
        for rule in self.intent.rules:
            if rule.config is None:
                continue
            for row in self.table.rows:
                if row.differences(rule.config):
                    continue
                scope = f"{rule}{filtered}"
                capability = row.describe(self.table.backend, rule.config, scope, presets)
                if _may_apply(rule, capability) and not self._is_overruled(rule, capability):
                    found.append(capability)
        return Capabilities(tuple(found))

    def _is_overruled(self, rule: Rule, capability: Capability) -> bool:
        """Whether a rule about the operator of a row decides everywhere in place of a global rule."""
        if not isinstance(rule, GlobalRule):
            return False
        about = (other.type for other in self.intent.type_rules if other.type.kind != "module")
        return any(set(capability.overloads) <= set(kind.overloads) for kind in about)

    def folds(self, batch_norm: Node, operator: Node) -> bool | None:
        """False if a rule leaves the BatchNorm in float, True if a rule asks for the operator before it."""
        rule, before = self.intent.rule_for(batch_norm), self.intent.rule_for(operator)
        if rule is not None and rule.config is None and not isinstance(rule, GlobalRule):
            return False
        is_asked = before is not None and before.config is not None
        return True if is_asked and overload_name(operator) in self._working_overloads else None

    @cached_property
    def _working_overloads(self) -> frozenset[str]:
        """Overloads of the operators that do the work in the rows of the table."""
        return frozenset(name for row in self.table.rows for name in row.pattern.working.overloads)

    def matcher(self, facts: GraphFacts) -> Matcher | None:
        """The matcher of a graph, from which the flow annotates.

        Returns:
            None if a derived class overrides :meth:`annotate`.
        """
        if not inherits(self, PatternQuantizer.annotate):
            return None
        return Matcher(self.table, self.intent, facts)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every free match that a rule asks for and that meets the constraints of its row.

        Afterwards the flow rewrites matches whose rows want another form.
        """
        matcher = self._new_matcher(model)
        for claim in matcher.settle():
            annotate_claim(claim, matcher.rows, self)
        return model

    def claims(self, model: GraphModule) -> tuple[Claim, ...]:
        """Claims of this quantizer on the nodes of a graph that have no annotation yet."""
        return self._new_matcher(model).settle()

    def _new_matcher(self, model: GraphModule) -> Matcher:
        return Matcher(self.table, self.intent, GraphFacts.of(model.graph))

    # Reasons and errors, from the same table.

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules that match nothing in this model, or that others override everywhere."""
        return self.intent.problems(model, self.name)

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules without effect, with the reasons. See :mod:`torchquilt.quantizers.unmet_rules`."""
        return self.problems_of(self._settled_matchers(model), model)

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """The most telling reason for each node that the table has rows for and that stays in float."""
        return self.rejections_of(self._settled_matchers(model))

    # The same answers from matchers that the flow has kept, so that no decision is made twice.

    def problems_of(self, matchers: tuple[Matcher, ...], model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules without effect, from this quantizer's matchers of each graph of a model."""

        def is_own(node: Node) -> bool:
            annotation = annotation_of(node)
            return annotation is not None and annotation.author == id(self)

        return unmet_rules(matchers, model, self.name, is_own)

    def rejections_of(self, matchers: tuple[Matcher, ...]) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """Name and most telling reason for each node that stays in float, from this quantizer's matchers."""
        rejects = telling_rejects(matchers)
        return {
            node: ((self.name, reject),) for node, reject in rejects.items() if annotation_of(node) is None
        }

    def _settled_matchers(self, model: GraphModule) -> tuple[Matcher, ...]:
        matchers = tuple(self._new_matcher(region.module) for region in regions(model))
        for matcher in matchers:
            matcher.settle()
        return matchers

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, PatternQuantizer)
        return self.table == other.table and self.intent == other.intent

    __hash__ = None  # type: ignore[assignment]  # the intent changes, so a hash would not hold

    def __repr__(self) -> str:
        asked = [f"{rule}: {rule.config}" for rule in self.intent.rules]
        function = self.intent.filter_function
        if function is not None:
            asked.append(f"filter: {getattr(function, '__qualname__', function)}")
        return f"{self.name}({', '.join(asked)})"


def _is_taken(rows: tuple[SupportRow, ...], config: QuantizationConfig) -> bool:
    return any(not row.differences(config) for row in rows)


def _may_apply(rule: Rule, capability: Capability) -> bool:
    """Whether a rule can apply to a row: always, unless its type belongs to another operator."""
    if not isinstance(rule, ObjectTypeRule):
        return True
    if rule.type.kind == "module" and not any(rule.type.name in operator.modules for operator in OPERATORS):
        return True  # a class of the user's own may hold any operator
    return capability.is_about(rule.type)
