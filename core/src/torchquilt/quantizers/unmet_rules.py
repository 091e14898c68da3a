"""Rules without effect: an error for each, with the reasons.

A rule is fulfilled when its own quantizer annotated at least one node it applies to; another quantizer's
annotation does not count.

The global rule asks for all that the backend supports. It is fulfilled when the quantizer annotated anything,
or when the model has no operator for the backend: a composition for models with embeddings may be given a
model without. It is not fulfilled when the quantizer could have quantized an operator and lost it to another
quantizer or to a condition, or when nothing in the model is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import attrs

from torchquilt.errors import IntentError
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import FOLDED, asked_name, overload_name
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.intent.intent import Intent
from torchquilt.intent.rules import GlobalRule, Rule
from torchquilt.quantizers.matching import Matcher
from torchquilt.reasons import reason_of
from torchquilt.spec.annotation import annotation_of
from torchquilt.support.pattern import Reject
from torchquilt.support.table import Sharing

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


_MOST_REASONS = 5
_MOST_TARGETS = 12


def telling_rejects(matchers: Iterable[Matcher]) -> dict[Node, Reject]:
    """Reason for each node that a quantizer does not claim, though its table has rows for it or refuses it.

    With it comes the rule that asked. Of several rows the one that came nearest answers. What another
    quantizer annotated is told as claimed.

    Args:
        matchers: those of one quantizer, settled, one for each graph.
    """
    found: dict[Node, Reject] = {}
    for matcher in matchers:
        told: dict[int, tuple[str, str]] = {}  # by the id of a rule; the intent holds them
        for node, rejected in matcher.rejected.items():
            rule = matcher.intent.rule_for(node)
            if id(rule) not in told:
                told[id(rule)] = (str(rule), str(rule.config or "float")) if rule is not None else ("", "")
            of_rule, asked = told[id(rule)]
            reject = _of_its_owner(node) or max(rejected, key=lambda reject: reject.weight)
            found[node] = attrs.evolve(reject, rule=of_rule, asked=asked)
        found.update(_refused(matcher))
    return found


def _of_its_owner(node: Node) -> Reject | None:
    annotation = annotation_of(node)
    if annotation is None:
        return None
    owner = annotation.quantizer or "another quantizer"
    return Reject(f"claimed_by:{owner}", (node,), f"{node.name} is annotated by {owner}")


def _refused(matcher: Matcher) -> Iterator[tuple[Node, Reject]]:
    """The nodes that something is asked for and that the table refuses, with the reason that it gives."""
    texts = {name: one.text for one in matcher.table.refusals for name in one.operator.overloads}
    for node in matcher.facts.graph.nodes if texts else ():
        rule = matcher.intent.rule_for(node) if overload_name(node) in texts else None
        if rule is not None and rule.config is not None:
            text = texts[overload_name(node)]
            yield node, Reject("no_kernel", (node,), text, str(rule), str(rule.config))


def unmet_rules(
    matchers: tuple[Matcher, ...], model: GraphModule, quantizer: str, is_own: Callable[[Node], bool]
) -> tuple[IntentError, ...]:
    """An error for each rule without effect.

    Args:
        matchers: those of the quantizer, settled, one for each graph of the model.
        model: the model, once all quantizers have annotated it.
        quantizer: its name.
        is_own: whether the quantizer annotated a node.
    """
    intent = matchers[0].intent
    if not any(rule.config for rule in intent.rules):
        return ()
    outcome = _Outcome(matchers, model, quantizer)
    deciding: dict[Rule, list[Node]] = {}
    for node in outcome.nodes:
        rule = intent.rule_for(node)
        if rule is not None and rule.config is not None and not isinstance(rule, GlobalRule):
            deciding.setdefault(rule, []).append(node)
    own = {node for node in outcome.nodes if is_own(node)}
    found = [
        outcome.problem(f"by the rule for {rule}", about)
        for rule, about in deciding.items()
        if own.isdisjoint(about)
    ]
    found += _folded_away(intent, outcome.nodes, own, quantizer)
    asks_everywhere = intent.global_rule is not None and intent.global_rule.config is not None
    if not own and (asks_everywhere or not found):
        lost = outcome.lost()
        if lost or all(annotation_of(node) is None for node in outcome.nodes):
            found.append(outcome.problem("in this model", lost or outcome.nodes))
    return tuple(found)


def _folded_away(intent: Intent, nodes: list[Node], own: set[Node], quantizer: str) -> Iterator[IntentError]:
    """An error for each rule that asks for something of a BatchNorm alone that has been folded."""
    deciding = {intent.rule_for(node) for node in nodes}
    for node in nodes:
        for norm in node.meta.get(FOLDED, ()):
            rule, before = intent.rule_for(norm), intent.rule_for(node)
            if rule in deciding or rule is None or rule.config is None:
                continue
            if node in own and before is not None and before.config == rule.config:
                continue
            deciding.add(rule)
            into = f"{overload_name(node).split('.')[1]} ({module_path(node) or node.name})"
            yield IntentError(
                f"The rule for {rule} has no effect: {norm.name} is folded into {into}.",
                node=node,
                quantizer=quantizer,
                expected="a rule about an operator that is there once BatchNorm is folded",
                got=f"{norm.name}, which is a part of {node.name}",
                remedy=f"give the rule for module {module_path(node)}, or ask for None, which keeps it apart",
            )


class _Outcome:
    """Facts about a model in which a rule is unmet."""

    def __init__(self, matchers: tuple[Matcher, ...], model: GraphModule, quantizer: str) -> None:
        self.nodes = [node for node in nodes_of(model) if node.op == "call_function"]
        self._matchers = matchers
        self._quantizer = quantizer

    @cached_property
    def rejects(self) -> dict[Node, Reject]:
        """Reason for each node that the table has rows for."""
        return telling_rejects(self._matchers)

    def lost(self) -> list[Node]:
        """Nodes that were asked for, with a config that some row takes, and that the quantizer lost."""
        matcher = self._matchers[0]
        found = []
        for node, reject in self.rejects.items():
            rule = matcher.intent.rule_for(node)
            config = rule.config if rule is not None else None
            told = reason_of(reject.code)
            if config is None or told is None or not told.is_lost_chance:
                continue
            rows = matcher.rows.get(asked_name(node), ())
            own = (row for row in rows if row.sharing is not Sharing.FOLLOWS_INPUT)
            if any(not row.differences(config) for row in own):
                found.append(node)
        return found

    def problem(self, where: str, about: Iterable[Node]) -> IntentError:
        """The error for something that was asked of these nodes."""
        about = list(about)
        owners = {annotation.quantizer for node in about if (annotation := annotation_of(node)) is not None}
        operators = {overload.rpartition(".")[0] for overload in self._matchers[0].rows}
        made = next((node for node in about if decomposed_from(node) in operators), None)
        by_it = " by this quantizer" if owners else ""
        return IntentError(
            f"Something was asked for {where}, and nothing is quantized{by_it}.",
            quantizer=self._quantizer,
            expected="at least one operator that is quantized",
            got=self._reasons(about, made),
            remedy=_remedy(self._quantizer, owners, made),
        )

    def _reasons(self, about: list[Node], made: Node | None) -> str:
        """Each kind of reason once, with an example."""
        reasons: dict[str, list[str]] = {}
        if made is not None:
            reasons["decomposed"] = [explanation(made)]
        for node in about:
            annotation = annotation_of(node)
            if node in self.rejects:
                reasons.setdefault(self.rejects[node].code, []).append(self.rejects[node].text)
            elif annotation is not None:
                text = f"{node.name} is annotated by {annotation.quantizer}"
                reasons.setdefault(f"claimed_by:{annotation.quantizer}", []).append(text)
        if not reasons:
            targets = [*dict.fromkeys(str(node.target) for node in about)]
            shown = ", ".join([*targets[:_MOST_TARGETS], *(["…"] if targets[_MOST_TARGETS:] else [])])
            return f"no row of the table starts with any of these: {shown}"
        texts = []
        for code, found in [*reasons.items()][:_MOST_REASONS]:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            texts.append(f"{code}: {found[0]}{more}")
        return "; ".join(texts)


def _remedy(quantizer: str, owners: set[str], made: Node | None) -> str:
    if made is not None:
        return "prepare the program as torch.export gave it, before run_decompositions()"
    if owners:
        first = " and ".join(f"the other {name}" if name == quantizer else name for name in sorted(owners))
        return f"compose it before {first}, let {first} leave something to it, or remove what is asked"
    return "ask for what the backend supports (quantization_capabilities()), or remove the rule"
