"""The answer of a comparison: error and use of integers, operator by operator.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import math
from typing import Any

import attrs

from torchquilt._internal.json_values import from_document, from_plain, parsed, to_plain
from torchquilt._internal.text_tables import Printed, counted, html_folded, html_list, html_table
from torchquilt.errors import AccuracyError

#: Version of the JSON that :meth:`Comparison.to_json` writes.
JSON_SCHEMA = 1
#: So many operators are printed.
_PRINTED = 20
#: From such shares on a range is the reason that is named.
_CUT_OFF, _TO_ZERO, _UNUSED = 0.5, 0.2, 0.5
#: A tensor with such a signal to noise in dB is rounded well, whatever becomes of some of its values.
_CLEAR = 30.0


@attrs.frozen
class ErrorFigures:
    """Error of a tensor over all batches.

    Args:
        sqnr: ratio of signal to noise in dB; ``inf`` where nothing differs, ``-inf`` where the quantized
            tensor has NaN or infinities that the float one does not have.
        cosine: cosine of the angle between the two; 1.0 where both are zero.
        mean_error: mean of quantized minus float: a bias, where it is not near zero.
        max_error: the largest magnitude of a difference.
    """

    sqnr: float
    cosine: float
    mean_error: float
    max_error: float

    def __str__(self) -> str:
        return f"{self.sqnr:.1f} dB"


@attrs.frozen
class TensorError:
    """Use that one quantized activation of an operator makes of its integers.

    Args:
        name: ``output``; ``input`` and the name of its producer; or ``within`` and the name of a node, of
            an operator that a backend wrote in another form.
        sqnr: signal to noise of quantizing this tensor alone, in dB.
        range: the smallest and the largest number that it can hold; None where parameters are many, or found
            when the model runs.
        step: distance of two neighbouring numbers; likewise.
        saturated: share of values that the range cuts off.
        cut_off: share of its noise that these values have.
        unused: share of the range in which no value lies; likewise.
        to_zero: share of values that are not zero and become zero.
        zeroed_channels: number of channels (dimension 1) all of whose values become zero.
    """

    name: str
    sqnr: float
    range: tuple[float, float] | None
    step: float | None
    saturated: float
    unused: float | None
    to_zero: float
    zeroed_channels: int
    cut_off: float = 0.0

    @property
    def reason(self) -> str:
        """Sentence about what costs the accuracy of this tensor."""
        if self.range is None or self.step is None:
            return f"{self.name} has few integers for its range ({self.sqnr:.1f} dB)"
        low, high = self.range
        if self.cut_off >= _CUT_OFF:
            share = f"{100 * self.saturated:.2g}% of {self.name}"
            return f"{share} is cut off at {low:.4g} … {high:.4g}, which is {self.cut_off:.0%} of its noise"
        if self.zeroed_channels or (self.to_zero >= _TO_ZERO and self.sqnr < _CLEAR):
            whole = counted(self.zeroed_channels, "whole channel")
            channels = f", {whole}" if self.zeroed_channels else ""
            return (
                f"{self.to_zero:.0%} of {self.name} becomes zero{channels}: a step is {self.step:.3g}, since "
                f"few large values stretch the range to {low:.4g} … {high:.4g}"
            )
        if self.unused is not None and self.unused >= _UNUSED:
            return f"{self.unused:.0%} of the range {low:.4g} … {high:.4g} of {self.name} is not used"
        return f"{self.name} is rounded to steps of {self.step:.3g} in {low:.4g} … {high:.4g}"


@attrs.frozen
class ComparedOperator:
    """Error of one operator.

    Args:
        node: its name, as the ledger has it.
        op: its overload.
        module: path of its module.
        quantizer, pattern, rule: who decided about it, as the ledger says; None and empty for float.
        spec: the spec of its output, empty where the output is not quantized.
        isolated: its own error, where all that it reads is as in the float model.
        accumulated: its error in the quantized model, with that of all operators before it.
        tensors: the quantized activations that it owns: inputs that are quantized for it, and its output.
        weight_sqnr: signal to noise of what it computes before its output is rounded, in dB: the error of its
            weights, and of inputs that are quantized for it.
        reason: sentence about what costs its accuracy; empty where it has no error.
        samples: pairs of float and quantized values of its output.
        diverged: how often it ran where the float model did not run it.
    """

    node: str
    op: str
    module: str
    quantizer: str | None
    pattern: str
    rule: str
    spec: str
    isolated: ErrorFigures
    accumulated: ErrorFigures
    tensors: tuple[TensorError, ...] = ()
    weight_sqnr: float = math.inf
    reason: str = ""
    samples: tuple[tuple[float, float], ...] = ()
    diverged: int = 0

    @property
    def output(self) -> TensorError | None:
        """Use of integers of the output; None where it is not quantized."""
        return next((one for one in self.tensors if one.name == "output"), None)

    @property
    def saturated(self) -> float:
        """Share of its output that is cut off."""
        return self.output.saturated if self.output else 0.0

    @property
    def unused(self) -> float | None:
        """Share of the range of its output in which no value lies."""
        return self.output.unused if self.output else None

    @property
    def zeroed_channels(self) -> int:
        """Number of channels of its output that become zero."""
        return self.output.zeroed_channels if self.output else 0

    def __str__(self) -> str:
        return f"{self.node} ({self.op}): {self.isolated} by itself, {self.accumulated} in all; {self.reason}"


@attrs.frozen
class ComparedOutput:
    """Error of one output of the model."""

    name: str
    error: ErrorFigures

    def __str__(self) -> str:
        found = self.error
        return f"{self.name}: {found.sqnr:.1f} dB, cosine {found.cosine:.5f}, max error {found.max_error:.3g}"


@attrs.frozen
class ComparedValue:
    """Error of a value between two steps of a lowered program, with the errors of all before it.

    Args:
        node: the operator of the model whose value it is.
        op: its overload in the program.
        module: path of its module.
        delegate: the delegate that computes it, empty where the runtime itself does.
        arithmetic: ``"integer"`` or ``"float"``.
        error: its error beside the float model.
    """

    node: str
    op: str
    module: str
    delegate: str
    arithmetic: str
    error: ErrorFigures

    def __str__(self) -> str:
        return f"{self.node} ({self.op}): {self.error} in all"


@attrs.frozen
class Uncompared:
    """An operator of the float model without a counterpart, and why."""

    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


@attrs.frozen(repr=False)
class Comparison:
    """Error of a quantized model beside its float model. Made by :func:`torchquilt.compare`.

    Args:
        operators: those that both models have, the worst isolated error first.
        outputs: of the model.
        batches: how many were run.
        uncompared: operators that only the float model has.
        values: of a lowered program, the values between its steps that its runtime tells, the worst first.
    """

    operators: tuple[ComparedOperator, ...]
    outputs: tuple[ComparedOutput, ...]
    batches: int
    uncompared: tuple[Uncompared, ...] = ()
    values: tuple[ComparedValue, ...] = ()

    def __getitem__(self, node: str) -> ComparedOperator:
        """The row of an operator, by its name.

        Raises:
            AccuracyError: no such operator was compared.
        """
        for row in self.operators:
            if row.node == node:
                return row
        raise AccuracyError(
            f"No operator {node!r} was compared.",
            expected="the name of an operator that both models have",
            got=node,
            remedy="comparison.operators has all of them, comparison.uncompared the others",
        )

    @property
    def worst(self) -> ComparedOperator | None:
        """The operator with the worst isolated error; None where none was compared."""
        return self.operators[0] if self.operators else None

    def to_plain(self) -> dict[str, Any]:
        """The comparison as dicts, lists, texts and numbers."""
        return {"schema": JSON_SCHEMA, **to_plain(self)}

    def to_json(self) -> str:
        """The comparison as JSON text, with a schema version. Infinite numbers are ``Infinity``."""
        return json.dumps(self.to_plain(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """The inverse of :meth:`to_json`.

        Raises:
            AccuracyError: the text is of another schema version, or no comparison.
        """
        data = parsed(text, "a comparison", AccuracyError)

        def read(found: dict[str, Any]) -> Comparison:
            return from_plain(Comparison, found)

        return from_document(data, JSON_SCHEMA, "a comparison", AccuracyError, read)

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each operator. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise AccuracyError(
                "A data frame needs pandas.",
                expected="pandas",
                got="it is not installed",
                remedy="pip install pandas, or use to_plain()",
            ) from error
        return pandas.DataFrame([_flat(row) for row in self.operators])

    def __repr__(self) -> str:
        return f"<Comparison of {counted(len(self.operators), 'operator')}; print it for the worst>"

    def __str__(self) -> str:
        return str(self.printed())

    def printed(self, most: int = _PRINTED) -> Printed:
        """Outputs, then the operators with the worst error of their own.

        Args:
            most: so many operators.
        """
        if self.values:
            return self._printed_values(most)
        before = [*(f"output {output}" for output in self.outputs)]
        shown = [row for row in self.operators if math.isfinite(row.isolated.sqnr) or row.isolated.sqnr < 0]
        after = []
        if len(shown) > most:
            after.append(f"… and {counted(len(shown) - most, 'more operator')} with an error")
        if self.uncompared:
            after.append(f"not compared: {counted(len(self.uncompared), 'operator')}, see .uncompared")
        if not shown[:most]:
            return Printed(before, (), after)
        return Printed([*before, ""], [_HEADER, *map(_cells, shown[:most])], after)

    def _printed_values(self, most: int) -> Printed:
        """Outputs of a program, then the values between its steps with the worst errors."""
        rest = len(self.values) - most
        after = [f"… and {counted(rest, 'more value')}"] if rest > 0 else []
        before = [*(f"output {output}" for output in self.outputs), ""]
        return Printed(before, [_VALUES_HEADER, *map(_value_cells, self.values[:most])], after)

    def _repr_html_(self) -> str:
        """The same for a notebook, with all operators folded away."""
        rows = [_cells(row) for row in self.operators]
        return "\n".join(
            [
                html_list("Outputs:", [str(output) for output in self.outputs]),
                html_table(_HEADER, rows[:_PRINTED]),
                html_folded(counted(len(rows), "operator"), html_table(_HEADER, rows)),
                html_list("Not compared:", [str(one) for one in self.uncompared]),
                html_list("Values between the steps of the program:", [str(one) for one in self.values]),
            ]
        )


_HEADER = ("operator", "by itself", "in all", "quantizer", "module", "reason")


_VALUES_HEADER = ("value of", "in all", "computed by", "in", "module")


def _value_cells(row: ComparedValue) -> tuple[str, ...]:
    return row.node, str(row.error), row.delegate or row.op, row.arithmetic, row.module or "–"


def _cells(row: ComparedOperator) -> tuple[str, ...]:
    return (
        row.node,
        f"{row.isolated.sqnr:.1f} dB",
        f"{row.accumulated.sqnr:.1f} dB",
        row.quantizer or "–",
        row.module or "–",
        row.reason,
    )


def _flat(row: ComparedOperator) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("node", "op", "module", "quantizer", "pattern", "rule", "spec", "weight_sqnr", "reason")
    }
    for kind in ("isolated", "accumulated"):
        found |= {f"{kind}_{name}": value for name, value in attrs.asdict(getattr(row, kind)).items()}
    return found | {name: getattr(row, name) for name in ("saturated", "unused", "zeroed_channels")}
