"""The backend with a model for each of its rows. What was exported is kept, since many tests look at it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import attrs
import pytest
import torch
from torch.fx import GraphModule

from torchquilt.quantizers.claim import Claim
from torchquilt.spec.config import QuantizationConfig
from torchquilt.support.table import Constraint, Sharing, SupportRow
from torchquilt.testing.configs import configs_of, group_size
from torchquilt.testing.examples import Example, examples_of
from torchquilt.testing.operators import Sizes
from torchquilt.testing.subject import Subject
from torchquilt.testing.trials import Trial, export


@attrs.define(eq=False)
class Bench:
    """Finds and keeps a model for each row.

    Args:
        subject: the backend.
    """

    subject: Subject
    _exported: dict[str, list[tuple[Example, GraphModule]]] = attrs.field(factory=dict, init=False)
    _broken: dict[Constraint, bool] = attrs.field(factory=dict, init=False)
    _trials: dict[tuple[SupportRow, QuantizationConfig], Trial] = attrs.field(factory=dict, init=False)

    def trial(self, row: SupportRow, example: Example, config: QuantizationConfig) -> Trial:
        """A new model for a row."""
        return Trial(row, config, self.subject.cls, example, export(example))

    def surveyed(self, row: SupportRow, config: QuantizationConfig) -> Iterator[Trial]:
        """All models that the kit can make or is given, at fixed sizes. Some the row does not take."""
        key = f"{row.pattern.name} {row.sharing is Sharing.FOLLOWS_INPUT} {group_size(config)}"
        if key not in self._exported:
            examples = self._examples(row, config)
            self._exported[key] = [(example, export(example)) for example in examples]
        for example, model in self._exported[key]:
            yield Trial(row, config, self.subject.cls, example, model)

    def is_broken_somewhere(self, constraint: Constraint) -> bool:
        """Whether some model of any row that has the constraint breaks it; rows of a table share them."""
        if constraint not in self._broken:
            rows = [row for row in self.subject.rows if constraint in row.constraints]
            self._broken[constraint] = any(
                match is not None and not constraint.holds(match)
                for row in rows
                for config in configs_of(row)[:1]
                for trials in (self.surveyed(row, config), self._largest(row, config))
                for match in (trial.judged()[0] for trial in trials)
            )
        return self._broken[constraint]

    def _largest(self, row: SupportRow, config: QuantizationConfig) -> Iterator[Trial]:
        """The plain model of the largest sizes, which are multiples of nothing.

        Sizes are drawn as well, but what is drawn may be even by chance.
        """
        sizes = Sizes(lambda _, high: high, group_size(config))
        for example in islice(examples_of(row.pattern, sizes), 1):
            yield Trial(row, config, self.subject.cls, example, export(example))

    def _examples(self, row: SupportRow, config: QuantizationConfig) -> Iterator[Example]:
        for number, build in enumerate(self.subject.supplied(row.pattern.name)):
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)  # what an author draws is the same in every run
                module, inputs = build()
            yield Example(f"{row.pattern.name}, supplied model {number}", module.eval(), inputs)
        sizes = Sizes(group=group_size(config))
        yield from examples_of(row.pattern, sizes, in_front=row.sharing is Sharing.FOLLOWS_INPUT)

    def models(self, row: SupportRow) -> list[Trial]:
        """As :meth:`find_models`, but skips the test if there is none: one failure a row says enough."""
        try:
            return self.find_models(row)
        except pytest.fail.Exception:
            pytest.skip("no model for this row: see test_a_row_annotates")

    def find_models(self, row: SupportRow) -> list[Trial]:
        """A model that the row claims, for each of the configs that it takes.

        Fails the test that asks if there is none, and says what to supply.
        """
        configs = configs_of(row)
        if not configs:
            pytest.fail(
                f"No config can ask for the row {row.pattern.name}, "
                f"whose specs are: {row.describe('').spec_text() or 'none'}.\n"
                "Write specs that torchquilt.QuantizationSpec can say.",
                pytrace=False,
            )
        return [self._model(row, config) for config in configs]

    def _model(self, row: SupportRow, config: QuantizationConfig) -> Trial:
        if (row, config) not in self._trials:
            self._trials[row, config] = self._find_model(row, config)
        return self._trials[row, config]

    def _find_model(self, row: SupportRow, config: QuantizationConfig) -> Trial:
        refused: dict[str, str] = {}
        for trial in self.surveyed(row, config):
            _, verdict = trial.judged()
            if isinstance(verdict, Claim):
                return trial
            refused.setdefault(f"{verdict.code}: {verdict.text}", trial.example.label)
        name = row.pattern.name
        tried = [f"  {label}: {reason}" for reason, label in refused.items()]
        pytest.fail(
            f"There is no model that the row {name} ({row.mode}) claims, asked for {config}.\n"
            + "\n".join(
                ["Tried were:", *tried] if tried else ["The kit cannot make one for these operators."]
            )
            + f"\nIf there is one, supply it: {self.subject.cls.__name__}.conformance_examples = "
            f"{{{name!r}: function}}, where function() returns (module, inputs).",
            pytrace=False,
        )
