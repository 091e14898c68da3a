"""The quantizer that is a support table and an intent: matching, rules and the query for nothing.

Importing this module does not import torch, so that what a backend can do is answered at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from torchquilt.annotation import annotate_node, annotation_of
from torchquilt.capability import Capabilities, Capability
from torchquilt.claims import Claim, decide
from torchquilt.config import QuantizationConfig
from torchquilt.errors import IntentError, TorchquiltError, UnsupportedConfigError
from torchquilt.graph.bodies import nodes_of, regions
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.intent import GlobalRule, Intent, ModuleNameRule, ObjectTypeRule, Rule
from torchquilt.operators import OPERATORS, ObjectType, object_type
from torchquilt.pattern import Reject
from torchquilt.quantizers import Quantizer
from torchquilt.support import SupportTable

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node
    from typing_extensions import Self


class PatternQuantizer(Quantizer):
    """A quantizer that is a support table and an intent, and nothing else.

    A backend derives from it and sets ``TABLE`` and ``PRESETS``. It can be used as it is, too::

        PatternQuantizer(table).set_global(config)

    Args:
        table: what is supported; by default the ``TABLE`` of the class.
    """

    #: What the backend supports.
    TABLE: ClassVar[SupportTable | None] = None
    #: Name → function that makes the config; what :meth:`from_preset` knows.
    PRESETS: ClassVar[Mapping[str, Callable[[], QuantizationConfig]]] = {}

    def __init__(self, table: SupportTable | None = None) -> None:
        if table is None and self.TABLE is None:
            raise IntentError(
                f"{type(self).__name__} has no support table.",
                expected="a SupportTable",
                got=None,
                remedy="pass one, or set TABLE on the class",
            )
        # Kept apart from the class's, which is not pickled with each instance.
        self._own_table = table
        self.intent = Intent()

    @property
    def table(self) -> SupportTable:
        """What is supported."""
        found = self._own_table or self.TABLE
        assert found is not None
        return found

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """An instance whose global config is the preset of this name.

        Raises:
            UnsupportedConfigError: the backend has no such preset; the error lists those that it has.
        """
        if name not in cls.PRESETS:
            raise UnsupportedConfigError(
                f"{cls.__name__} has no preset {name!r}.",
                quantizer=cls.__name__,
                expected=" | ".join(cls.PRESETS) or "no presets",
                got=name,
            )
        return cls().set_global(cls.PRESETS[name]())

    @classmethod
    def backend_capabilities(cls) -> Capabilities:
        """All that the backend can do, whatever is asked of an instance."""
        return cls.TABLE.capabilities() if cls.TABLE else Capabilities()

    # What is asked. Each returns the quantizer itself, so that calls can be chained.

    def set_global(self, config: QuantizationConfig | None) -> Self:
        """Ask for a config wherever no other rule decides; None asks for nothing there.

        Raises:
            UnsupportedConfigError: no row of the backend takes this config.
        """
        self.intent = self.intent.with_global(self._checked(config))
        return self

    def set_object_type(self, object_type_: object, config: QuantizationConfig | None) -> Self:
        """Ask for a config at each node that comes from a type; None leaves them in float.

        Args:
            object_type_: a module class (everything inside such modules), a functional such as
                ``torch.nn.functional.linear``, or an ATen operator such as ``torch.ops.aten.linear.default``.
            config: what is asked there.

        Raises:
            IntentError: the type is none of these, or an operator that the backend has no row for.
            UnsupportedConfigError: no row of the backend takes this config.
        """
        kind = object_type(object_type_, self._operators())
        if config is not None:
            self._check_is_known(kind)
        self.intent = self.intent.with_type(kind, self._checked(config))
        return self

    def set_module_name(self, name: str, config: QuantizationConfig | None) -> Self:
        """Ask for a config in the module of this name and all that is in it; None leaves it in float.

        Args:
            name: as in ``model.named_modules()``: ``"encoder.layer.0"``. ``layer.1`` is not ``layer.10``.
                ``*`` stands for one part between dots: ``"encoder.layer.*.output"``.
            config: what is asked there.

        Raises:
            IntentError: the name is no text.
            UnsupportedConfigError: no row of the backend takes this config.
        """
        if not isinstance(name, str):
            raise IntentError(
                "A module is named by text.",
                quantizer=self.name,
                expected="a name as in model.named_modules()",
                got=repr(name),
                remedy="for a class or an operator there is set_object_type",
            )
        self.intent = self.intent.with_name(name, self._checked(config))
        return self

    def set_filter_function(self, function: Callable[[Node], bool] | None) -> Self:
        """Quantize only where this function returns true for every node of the match."""
        self.intent = self.intent.with_filter(function)
        return self

    def _operators(self) -> tuple[Any, ...]:
        """The operators of the table, which may be the backend's own, and those that everyone knows."""
        own = (operator for row in self.table.rows for operator in row.pattern.operators)
        return tuple(dict.fromkeys((*own, *OPERATORS)))

    def _check_is_known(self, kind: ObjectType) -> None:
        """Refuse an operator that the table has nothing for. A class of the user's own may hold anything."""
        known = [operator for row in self.table.rows for operator in row.pattern.operators]
        if kind.kind == "module":
            meant = [operator for operator in OPERATORS if kind.name in operator.modules]
            if not meant or any(kind.name in operator.modules for operator in known):
                return
        elif any(overload in operator.overloads for operator in known for overload in kind.overloads):
            return
        names = dict.fromkeys(operator.name for operator in known)
        raise IntentError(
            f"{self.table.backend} has no row for {kind.name}.",
            quantizer=self.name,
            expected=", ".join(names),
            got=kind.name,
            remedy="pass None to leave it in float, or compose a quantizer that supports it",
        )

    def _checked(self, config: QuantizationConfig | None) -> QuantizationConfig | None:
        if config is None:
            return None
        if not isinstance(config, QuantizationConfig):
            raise IntentError(
                "A rule asks for a QuantizationConfig of torchquilt, or for None.",
                quantizer=self.name,
                expected="torchquilt.QuantizationConfig | None",
                got=f"{type(config).__module__}.{type(config).__qualname__}",
                remedy="use the plugin's own functions that make configs",
            )
        gaps = [(row, row.differences(config)) for row in self.table.rows]
        row, nearest = min(gaps, key=lambda gap: len(gap[1]))
        if nearest:
            raise UnsupportedConfigError(
                f"{self.table.backend} has no row that takes this config.",
                quantizer=self.name,
                expected=f"nearest is {row.pattern.name} ({row.mode})",
                got="; ".join(nearest),
                remedy=f"presets that it takes: {', '.join(self.PRESETS)}" if self.PRESETS else None,
            )
        return config

    # What is answered and done, both from the table.

    def quantization_capabilities(self) -> Capabilities:
        """The rows that the rules ask for, with the rule that asks. Empty where nothing is asked.

        A rule about a type yields the rows of that operator alone; for a module class that contains
        other things, and for a module name, every row that takes the config.
        """
        found: list[Capability] = []
        for rule in self.intent.rules:
            if rule.config is None:
                continue
            for row in self.table.rows:
                if row.differences(rule.config):
                    continue
                capability = row.describe(self.table.backend, rule.config, scope=str(rule))
                if _is_meant(rule, capability) and not self._is_overruled(rule, capability):
                    found.append(capability)
        return Capabilities(tuple(found))

    def _is_overruled(self, rule: Rule, capability: Capability) -> bool:
        """Whether a more specific rule decides wherever the operator of a row comes from."""
        if not isinstance(rule, GlobalRule):
            return False
        about = (other.type for other in self.intent.type_rules if other.type.kind != "module")
        return any(set(capability.overloads) <= set(kind.overloads) for kind in about)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Turn Python numbers into constant tensors where the operator is going to be quantized."""
        from torchquilt.graph.edits import lift_scalar

        for claim in self.claims(model):
            for node, position, value in claim.match.scalars:
                lift_scalar(model, node, position, value)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every match of a row that is asked for, is free, and meets the constraints."""
        for claim in self.claims(model):
            for node, annotation in claim.annotations(self.name):
                annotate_node(node, annotation)
        return model

    def annotate_rest(self, model: GraphModule) -> None:
        """Annotate again: what is annotated is left alone, and what passes it on can be claimed now."""
        self.annotate(model)

    def claims(self, model: GraphModule) -> tuple[Claim, ...]:
        """What is taken of the model as it is annotated so far. Complete before anything is written."""
        decisions = decide(self.table, self.intent, model.graph)
        return tuple(found for _, found in decisions if isinstance(found, Claim))

    # Why not, from the same table again.

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Rules about nothing in this model, and rules that others decide everywhere."""
        return self.intent.problems(model, self.name)

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Rules that ask for something where nobody annotated anything; with the reasons.

        A rule about a module or a type is looked at by itself, the global one together with the rest:
        it is met as soon as anything at all is annotated.
        """
        nodes = [node for node in nodes_of(model) if node.op == "call_function"]
        deciding: dict[Rule | None, list[Node]] = {}
        for node in nodes:
            deciding.setdefault(self.intent.rule_for(node), []).append(node)
        if any(rule.config for rule in self.intent.rules):
            everywhere = GlobalRule(None)
            deciding = {rule: about for rule, about in deciding.items() if _asks_by_itself(rule)}
            deciding[everywhere] = nodes
        else:
            deciding = {}
        rejected = self.rejections(model)
        operators = {overload.rpartition(".")[0] for overload in self.table.rows_starting_with()}
        return tuple(
            _nothing_came_of(rule, about, rejected, self.name, operators)
            for rule, about in deciding.items()
            if all(annotation_of(node) is None for node in about)
        )

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """For each node that the table has rows for and nobody took: the most telling reason."""
        found: dict[Node, tuple[tuple[str, Reject], ...]] = {}
        decisions = (decide(self.table, self.intent, region.module.graph) for region in regions(model))
        for node, decision in chain.from_iterable(decisions):
            if annotation_of(node) is not None:
                continue
            if isinstance(decision, Claim):  # what it needed was annotated after it had been asked
                text = f"{node.name} was asked before its neighbours were quantized"
                decision = (Reject("no_quantized_neighbour", (node,), text),)
            found[node] = ((self.name, max(decision, key=lambda reject: reject.weight)),)
        return found

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


def _asks_by_itself(rule: Rule | None) -> bool:
    return isinstance(rule, (ModuleNameRule, ObjectTypeRule)) and rule.config is not None


def _nothing_came_of(
    rule: Rule | None,
    nodes: list[Node],
    rejected: dict[Node, tuple[tuple[str, Reject], ...]],
    quantizer: str,
    operators: set[str],
) -> IntentError:
    """The error for a rule that nothing came of, with up to five different reasons."""
    reasons = dict.fromkeys(
        f"{reject.code}: {reject.text}" for node in nodes for _, reject in rejected.get(node, ())
    )
    made = [node for node in nodes if decomposed_from(node) in operators]
    reasons = dict.fromkeys((*(f"decomposed: {explanation(node)}" for node in made[:1]), *reasons))
    known = "; ".join([*reasons][:5]) or "no row of the table starts with any of these: " + ", ".join(
        dict.fromkeys(str(node.target) for node in nodes)
    )
    where = "in this model" if isinstance(rule, GlobalRule) else f"by the rule for {rule}"
    return IntentError(
        f"Something was asked for {where}, and nothing is quantized.",
        quantizer=quantizer,
        expected="at least one operator that is quantized",
        got=known,
        remedy="prepare the program as torch.export gave it, before run_decompositions()"
        if made
        else "ask for what the backend supports (quantization_capabilities()), or remove the rule",
    )


def _is_meant(rule: Rule, capability: Capability) -> bool:
    """Whether a rule can be about the row: always, unless it is about a type that is another operator's."""
    if not isinstance(rule, ObjectTypeRule):
        return True
    if rule.type.kind == "module" and not any(rule.type.name in operator.modules for operator in OPERATORS):
        return True  # a class of the user's own: anything may be inside of it
    return capability.is_about(rule.type)
