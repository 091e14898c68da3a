"""Finding the rules that are about a node: the same ones as by looking at each, for less."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import torchquilt as tq
from strategies import export, normal
from torchquilt.intent import intent, rules
from torchquilt.intent.rules import ModuleNameRule, RuleIndex
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from work import calls_in, growth

STATIC = get_symmetric_quantization_config()

parts = st.sampled_from(["a", "b", "layer", "layers", "1", "10", "11"])
paths = st.lists(parts, max_size=5).map(".".join)
names = st.lists(parts | st.sampled_from(["*", "?", "1?", "[ab]", "l*r", "**"]), max_size=5).map(".".join)


def is_about(name: str, path: str) -> bool:
    """The meaning of a name, said in another way: one of the beginnings of a path fits it, part by part."""
    wanted = name.split(".") if name else []
    found = path.split(".") if path else []
    return any(_fits(wanted, found[:end]) for end in range(len(found) + 1))


def _fits(wanted: list[str], found: list[str]) -> bool:
    if not wanted:
        return not found
    first, *rest = wanted
    if first == "**":
        return any(_fits(rest, found[skipped:]) for skipped in range(len(found) + 1))
    return bool(found) and fnmatchcase(found[0], first) and _fits(rest, found[1:])


@given(st.lists(names, max_size=8, unique=True), st.lists(paths, min_size=1, max_size=8))
@example(["layer.1", "layer.1?", "layer", ""], ["layer.10", "layer.1.fc", "layers.1", ""])
@example(["**.fc", "**", "a.**.b"], ["fc", "a.b", "a.b.c.b", "a.b.fc.x"])
def test_the_index_finds_what_the_names_mean(given_names: list[str], modules: list[str]) -> None:
    """For each module the rules about it or what it is in, in the order given, whatever was asked before."""
    asked = tuple(ModuleNameRule(name, STATIC) for name in given_names)
    index = RuleIndex(None, (), asked)
    for path in modules:
        assert index.naming(path) == tuple(rule for rule in asked if is_about(rule.name, path))


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("layer.1", ["layer.1", "layer.1.fc"], ["layer.10", "layer", "layers.1", "a.layer.1"]),
        ("layer.*", ["layer.1", "layer.10.fc"], ["layer", "a.layer.1"]),
        ("layer.1?", ["layer.10", "layer.11.fc"], ["layer.1", "layer.100"]),
        ("layer.*.fc", ["layer.1.fc", "layer.1.fc.inner"], ["layer.fc", "layer.1.2.fc"]),
        ("layer.[01]", ["layer.0", "layer.1"], ["layer.2", "layer.01"]),
        ("**.fc", ["fc", "layer.fc", "a.b.c.fc.d"], ["fcs", "a.fcs"]),
        ("layer.**.fc", ["layer.fc", "layer.1.2.fc"], ["fc", "a.layer.fc", "layer"]),
    ],
)
def test_a_name_is_exactly_the_module_and_what_is_inside(
    name: str, inside: list[str], outside: list[str]
) -> None:
    """Whole parts, from the root; a pattern stands for letters of one part, two stars for any parts."""
    index = RuleIndex(None, (), (ModuleNameRule(name, STATIC),))
    assert [path for path in inside if not index.naming(path)] == []
    assert [path for path in outside if index.naming(path)] == []


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("layer.1.fc", "layer.1"),
        ("layer.1", "layer.*"),
        ("layer.1*", "layer.*"),
        ("layer.*.fc", "layer.*"),
        ("layer.1", "**.1"),
        ("layer", "**"),
    ],
)
def test_the_more_specific_name_decides(more: str, less: str) -> None:
    """More parts, and among as many more letters that stand for themselves."""
    assert ModuleNameRule(more, None).specificity > ModuleNameRule(less, None).specificity


# ----------------------------------------------------------------------------------------------------------
# What it costs
# ----------------------------------------------------------------------------------------------------------


def block(number: int) -> nn.Module:
    """A linear and a dropout in a module of a class of its own."""
    cls = type(f"Block{number:03}", (nn.Sequential,), {"__module__": __name__})
    made: nn.Module = cls(nn.Linear(4, 4), nn.Dropout())
    return made


def by_name(quantizer: XNNPACKQuantizer, model: nn.Module) -> None:
    """A rule for each block by its name."""
    for name, _ in model.named_children():
        quantizer.set_module_name(name, STATIC)


def by_class(quantizer: XNNPACKQuantizer, model: nn.Module) -> None:
    """A rule for each block by its class."""
    for child in model.children():
        quantizer.set_object_type(type(child), STATIC)


def of_dropouts(quantizer: XNNPACKQuantizer, model: nn.Module) -> None:
    """A rule for each block that leaves it in float, where no operator is."""
    quantizer.set_global(STATIC)
    for name, _ in model.named_children():
        quantizer.set_module_name(f"{name}.1", None)


@pytest.mark.parametrize("give", [by_name, by_class, of_dropouts], ids=lambda give: give.__name__)
def test_many_rules_cost_as_much_as_they_are(give: Callable[[XNNPACKQuantizer, nn.Module], None]) -> None:
    """Twice as many rules about twice as many modules are twice the work, and not four times."""

    def work(size: int) -> int:
        model = nn.Sequential()
        for number in range(size):
            model.add_module(f"block{number:03}", block(number))
        quantizer = XNNPACKQuantizer()
        give(quantizer, model)
        exported = export(model, normal(2, 4))
        return calls_in((rules, intent), lambda: tq.explain(exported, quantizer))

    assert growth(work, 10) <= 2.1


def test_work_that_is_not_linear_is_seen() -> None:
    """The count above includes what grows with the square: rules that are each held against each module."""

    def hold_each(size: int) -> int:
        found = [ModuleNameRule(f"block{number:03}", STATIC) for number in range(size)]
        index = {number: RuleIndex(None, (), (rule,)) for number, rule in enumerate(found)}
        return calls_in((rules,), lambda: [index[n].naming(rule.name) for rule in found for n in index])

    assert growth(hold_each, 10) > 3


def test_the_same_module_is_looked_up_once() -> None:
    """A hundred operators of one module cost one look at the patterns."""
    looked: list[str] = []
    index = RuleIndex(None, (), (ModuleNameRule("blo[c]k.*", STATIC),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rules, "fnmatchcase", lambda part, found: looked.append(part) or fnmatchcase(part, found)
        )
        for _ in range(100):
            assert index.naming("block.1")
    assert looked == ["block", "1"]


def test_of_rules_for_one_operator_the_last_one_decides() -> None:
    """Names that mean one overload are rules of their own; who speaks last is heard."""
    dynamic = get_symmetric_quantization_config(is_dynamic=True)
    model = export(nn.Linear(4, 4), normal(2, 4)).module()
    quantizer = XNNPACKQuantizer().set_object_type("linear", STATIC)
    quantizer.set_object_type(torch.ops.aten.linear.default, dynamic)
    (node,) = [node for node in model.graph.nodes if node.op == "call_function"]
    rule = quantizer.intent.rule_for(node)
    assert rule is not None
    assert rule.config == dynamic
