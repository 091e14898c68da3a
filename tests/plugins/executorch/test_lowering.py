"""tq.lower and the program that it returns: run, structure, sizes, state, files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from plugins.executorch.models import TOKENS, Counter, Encoder, composed, converted, xnnpack
from strategies import Fn, export, normal, sqnr
from torchquilt.lowering import load


@cache
def encoder() -> GraphModule:
    """The encoder, composed."""
    return converted(Encoder(), composed(), TOKENS)


@cache
def encoder_program() -> tq.LoweredProgram:
    """The same, lowered once."""
    return tq.lower(encoder(), (TOKENS,))


def test_a_program_computes_what_the_quantized_model_computes() -> None:
    """It runs on the real runtime and returns the same."""
    found = encoder_program().run(TOKENS)
    assert sqnr(encoder()(TOKENS), found) > 100


def test_a_program_says_what_it_is() -> None:
    """Target, backends, size, inputs and outputs, delegates and kernels are told."""
    program = encoder_program()
    assert (program.target, program.backends) == ("executorch", ("executorch_embedding", "xnnpack"))
    assert program.size == len(program.buffer) > 1000
    assert [str(port) for port in program.io.inputs] == ["tokens: int64[2, 5]"]
    assert [str(port) for port in program.io.outputs] == ["output_0: float32[2, 5, 4]"]
    assert program.delegates == ("XnnpackBackend",)
    assert program.operators == ("quantized_decomposed::embedding_byte.out", "aten::cumsum.out")


def test_what_was_saved_is_lowered_with_the_backends_of_its_lock(tmp_path: Path) -> None:
    """A loaded artifact needs no inputs; the program has the ledger and computes the same."""
    tq.save(encoder(), tmp_path / "encoder.pt2", (TOKENS,))
    program = tq.lower(tq.load(tmp_path / "encoder.pt2"))
    assert program.backends == encoder_program().backends
    assert program.ledger == encoder_program().ledger
    assert torch.equal(program.run(TOKENS), encoder_program().run(TOKENS))


def test_backends_can_be_named() -> None:
    """Without XNNPACK everything is left to the runtime's own kernels, and still runs."""
    program = tq.lower(encoder(), (TOKENS,), backends=["executorch_embedding"])
    assert (program.backends, program.delegates) == (("executorch_embedding",), ())
    assert sqnr(encoder()(TOKENS), program.run(TOKENS)) > 40


def test_a_float_program_is_lowered_with_the_backends_that_are_named() -> None:
    """A float model has no ledger; its operators run in float in the delegate."""
    exported = export(nn.Linear(8, 4), normal(3, 8))
    program = tq.lower(exported, backends=["xnnpack"])
    assert (program.ledger, program.delegates) == (None, ("XnnpackBackend",))
    assert sqnr(exported.module()(normal(3, 8)), program.run(normal(3, 8))) > 100


def test_a_float_program_that_writes_to_its_state_is_lowered() -> None:
    """Its parameters ask for gradients, as those of a model that was not quantized do."""
    exported = export(Counter(), normal(2, 4))
    program = tq.lower(exported, backends=["xnnpack"])
    first = program.run(normal(2, 4))
    assert sqnr(2 * first, program.run(normal(2, 4))) > 100


def test_a_model_of_another_flow_is_lowered_with_the_backends_that_are_named() -> None:
    """A graph module without a record is exported again like one of ours."""
    module = export(nn.Linear(8, 4), normal(3, 8)).module()
    assert tq.lower(module, (normal(3, 8),), backends=["xnnpack"]).delegates == ("XnnpackBackend",)


class Nested(nn.Module):
    """Takes a dict and a keyword, and returns a dict with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: dict[str, torch.Tensor], *, y: torch.Tensor) -> dict[str, Any]:
        """Two layers of the one, the other plus one."""
        return {"scores": self.second(self.first(x["hidden"]).relu()), "rest": [y + 1]}


@cache
def nested() -> tuple[GraphModule, tq.LoweredProgram]:
    """The nested model, with a dynamic number of rows between 2 and 16."""
    rows = torch.export.Dim("rows", min=2, max=16)
    batch = {"hidden": normal(3, 8)}, normal(3)
    model = converted(
        Nested(),
        xnnpack(is_dynamic=True),
        batch[0],
        kwargs={"y": batch[1]},
        dynamic_shapes={"x": {"hidden": {0: rows}}, "y": {0: rows}},
    )
    return model, tq.lower(model, {"x": batch[0], "y": batch[1]})


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_a_program_is_called_like_the_model(rows: int) -> None:
    """Structures of inputs and outputs, keywords and dynamic sizes are those of the model."""
    model, program = nested()
    x, y = {"hidden": normal(rows, 8)}, normal(rows)
    expected, found = model(x, y=y), program.run(x, y=y)
    assert found.keys() == expected.keys()
    assert sqnr(expected["scores"], found["scores"]) > 60
    assert torch.equal(found["rest"][0], expected["rest"][0])


def test_dynamic_sizes_are_told() -> None:
    """Each input says which sizes it takes, and which have to be equal."""
    first, second = nested()[1].io.inputs
    assert (first.shape[0].low, first.shape[0].high, first.shape[1].high) == (2, 16, 8)
    assert first.shape[0].symbol == second.shape[0].symbol != ""


def test_inputs_need_not_be_contiguous() -> None:
    """Inputs in an order of memory that the runtime does not take are brought into order."""
    program = encoder_program()
    assert torch.equal(program.run(TOKENS.t().contiguous().t()), program.run(TOKENS))


def test_state_is_kept_between_runs_and_begins_where_the_model_does() -> None:
    """A buffer that the model writes to goes on; verifying does not leave anything in it."""
    model = converted(Counter(), xnnpack(), normal(2, 4))
    program = tq.lower(model, (normal(2, 4),), verify=True)
    for _ in range(3):
        expected, found = model(normal(2, 4)), program.run(normal(2, 4))
        assert sqnr(expected, found) > 30


def test_control_flow_runs() -> None:
    """Both branches of a cond are in the program, and each of their operators has a lowering status."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda a: m.fc(a).relu(), lambda a: m.fc(a) * 2, (x,))

    module = Fn(run, fc=nn.Linear(8, 8))
    prepared = tq.prepare_pt2e(export(module, normal(3, 8)), xnnpack(is_dynamic=True), strict=False)
    model = tq.convert_pt2e(prepared)
    program = tq.lower(model, (normal(3, 8),), target="executorch", backends=[])
    for x in (normal(3, 8).abs(), -normal(3, 8).abs()):
        assert sqnr(model(x), program.run(x)) > 40
    assert program.ledger is not None
    statuses = {row.node: row.lowered.code for row in program.ledger if row.lowered and row.is_quantized}
    assert len(statuses) == 2
    assert set(statuses.values()) == {"fell_back_to_float"}


# --- Files --------------------------------------------------------------------------------------------------


def test_a_saved_program_is_loaded_and_runs(tmp_path: Path) -> None:
    """The file is the program to the byte; the report beside it says all that is known of it."""
    program, path = encoder_program(), tmp_path / "encoder.pte"
    program.save(path)
    loaded = load(path)
    assert path.read_bytes() == program.buffer
    assert loaded.to_json() == program.to_json()
    assert loaded.ledger == program.ledger
    assert torch.equal(loaded.run(TOKENS), program.run(TOKENS))


def test_a_program_without_its_report_is_loaded_and_runs(tmp_path: Path) -> None:
    """Inputs, outputs, delegates and kernels are read from the program itself."""
    program, path = encoder_program(), tmp_path / "encoder.pte"
    path.write_bytes(program.buffer)
    loaded = load(path)
    assert (loaded.delegates, loaded.operators) == (program.delegates, program.operators)
    assert [(port.dtype, port.shape) for port in loaded.io.inputs] == [
        (port.dtype, port.shape) for port in program.io.inputs
    ]
    assert (loaded.ledger, loaded.operations) == (None, ())
    assert torch.equal(loaded.run(TOKENS), program.run(TOKENS))


def test_a_report_about_another_program_is_refused(tmp_path: Path) -> None:
    """The report names its program by digest, so that it is never believed of another one."""
    encoder_program().save(tmp_path / "encoder.pte")
    (tmp_path / "encoder.pte").write_bytes(nested()[1].buffer)
    with pytest.raises(tq.ModelError, match="about another program"):
        load(tmp_path / "encoder.pte")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1}', '{"schema": 99, "sha256": ""}'])
def test_a_report_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Whatever lies beside a program, the error is ours."""
    encoder_program().save(tmp_path / "encoder.pte")
    (tmp_path / "encoder.pte.json").write_text(text)
    with pytest.raises(tq.ModelError, match="report"):
        load(tmp_path / "encoder.pte")


def test_a_program_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    """An error says so; the old program is untouched."""
    path = tmp_path / "encoder.pte"
    path.write_bytes(b"before")
    (tmp_path / "encoder.pte.json").mkdir()
    with pytest.raises(tq.ProgramError, match="could not be written") as caught:
        encoder_program().save(path)
    assert caught.value.path == str(path)
    assert path.read_bytes() == b"before"
