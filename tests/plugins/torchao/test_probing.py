"""Capabilities of foreign quantizers, which have no table: found out by annotating examples."""

from __future__ import annotations

import json
import multiprocessing.process
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e import quantizer as theirs

import torchquilt as tq
from plugins.torchao.flows import exported
from plugins.torchao.models import model_of
from plugins.torchao.vendors import SLOW, VENDORS
from torchquilt.backend import operators
from torchquilt.errors import IntentError, QuantizerError, SharingError
from torchquilt.testing import probe_child, probing
from torchquilt.testing.probe_cache import VARIABLE, Subject
from torchquilt_torchao import foreign

pytestmark = pytest.mark.filterwarnings("ignore")  # of the vendors' own

_INT8 = theirs.QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
FEW = (operators.LINEAR, operators.ADD, operators.RELU, operators.SOFTMAX, operators.FLATTEN, operators.T)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no look into the home folder."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("QNN_STAGING_DIR", str(tmp_path))
    return tmp_path / "cache" / "probed"


@pytest.fixture(autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of a few operators instead of all."""
    if "exhaustive" in request.keywords:
        return
    monkeypatch.setattr(probing, "OPERATORS", FEW)
    monkeypatch.setattr(probing, "_BEFORE_RELU", (operators.LINEAR,))
    # A machine that stands still for a while is no quantizer that takes long. Tests of limits set their own.
    monkeypatch.setattr(probing, "EACH", 300.0)
    monkeypatch.setattr(probing, "FOR_NOTHING", 300.0)
    monkeypatch.setenv(probe_child.LIMIT, "3000")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The child processes that are started."""
    started: list[Any] = []
    start = multiprocessing.process.BaseProcess.start

    def counted(process: Any) -> None:
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", counted)
    yield started
    assert not any(process.is_alive() for process in started)


class Outputs(theirs.Quantizer):  # type: ignore[misc]
    """Annotates the outputs of additions; what it meets besides is up to derived classes."""

    def __init__(self, spec: Any = _INT8) -> None:
        super().__init__()
        self.spec = spec

    def annotate(self, model: Any) -> Any:
        """Annotate."""
        for node in model.graph.nodes:
            self.meet(node)
            if node.target is torch.ops.aten.add.Tensor:
                node.meta["quantization_annotation"] = theirs.QuantizationAnnotation(
                    {}, self.spec, _annotated=True
                )
        return model

    def meet(self, node: Any) -> None:
        """Do nothing."""

    def validate(self, model: Any) -> None:
        """Nothing to check."""


class Hangs(Outputs):
    """Never returns from a transpose."""

    def meet(self, node: Any) -> None:
        """Wait."""
        if node.target is torch.ops.aten.t.default:
            time.sleep(1000)


class Dies(Outputs):
    """Ends the process at a transpose, as a fault of native code does."""

    def meet(self, node: Any) -> None:
        """End."""
        if node.target is torch.ops.aten.t.default:
            os._exit(7)


class Fails(Outputs):
    """Raises an error at a transpose."""

    def meet(self, node: Any) -> None:
        """Fail."""
        if node.target is torch.ops.aten.t.default:
            raise KeyError("t is not known")


class Nothing(Outputs):
    """Edits nothing."""

    def annotate(self, model: Any) -> Any:
        """Leave the model as it is."""
        return model


class ByShape(Outputs):
    """Annotates additions of two dimensions alone."""

    def annotate(self, model: Any) -> Any:
        """Annotate, and take back."""
        for node in super().annotate(model).graph.nodes:
            if node.target is torch.ops.aten.add.Tensor and node.meta["val"].dim() != 2:
                del node.meta["quantization_annotation"]
        return model


class Notes(Outputs):
    """Notes the model that it annotated last, as NNCF's algorithms note for what kind of model they are."""

    def annotate(self, model: Any) -> Any:
        """Annotate, and note."""
        self.last = len(model.graph.nodes)
        return super().annotate(model)


class Slow(Outputs):
    """Takes its time for any model."""

    def annotate(self, model: Any) -> Any:
        """Wait."""
        time.sleep(1000)


class Joins(Outputs):
    """Lets the second input and the output of an addition share parameters with its first, as Samsung's."""

    def meet(self, node: Any) -> None:
        """Annotate what reads one tensor twice."""
        if node.target is torch.ops.aten.mul.Tensor:
            first, second = node.args
            shared = theirs.SharedQuantizationSpec((first, node))
            node.meta["quantization_annotation"] = theirs.QuantizationAnnotation(
                {first: _INT8, second: shared}, shared, _annotated=True
            )


class BySource(Outputs):
    """Annotates additions of which an export has told where they come from."""

    def annotate(self, model: Any) -> Any:
        """Annotate, and take back."""
        for node in super().annotate(model).graph.nodes:
            if "source_fn_stack" not in node.meta:
                node.meta.pop("quantization_annotation", None)
        return model


def rows_of(quantizer: Any) -> tq.Capabilities:
    """The capabilities of a foreign quantizer."""
    return foreign(quantizer).quantization_capabilities()


def test_a_row_says_specs_and_that_it_was_probed() -> None:
    """Backend, specs by role, versions and date; what was not annotated has no row."""
    (row,) = rows_of(Outputs())
    assert (row.backend, row.pattern, row.mode, row.scope) == ("Outputs", "add", "static", "")
    assert row.spec_text() == "output: int8 per_tensor affine"
    assert "torchao 0." in row.probed
    assert "torchquilt " in row.probed
    assert time.strftime("%Y-") in row.probed
    assert "probed: " in str(row)
    assert "probing" in str(rows_of(Outputs()))


@pytest.mark.long
def test_a_second_time_starts_no_process(children: list[Any]) -> None:
    """Of the same class, config and versions; of another config it does."""
    first = rows_of(Outputs())
    assert children
    children.clear()
    assert rows_of(Outputs()) == first
    assert children == []
    other = theirs.QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, torch.per_tensor_affine)
    assert rows_of(Outputs(other)) != first
    assert children


@pytest.mark.long
def test_what_use_leaves_in_a_quantizer_is_no_content(children: list[Any]) -> None:
    """Behind explain it is not probed again in the same and in another composition; reconfigured it is."""
    quantizer = Notes()
    both = tq.ComposableQuantizer([quantizer, "executorch_embedding:byte_per_row"])
    before = both.quantization_capabilities()
    assert children
    children.clear()
    for name in ("residual", "linear"):
        tq.explain(exported(model_of(name)), tq.ComposableQuantizer([quantizer]))
        assert quantizer.last
        assert both.quantization_capabilities() == before
    assert children == []
    quantizer.spec = theirs.QuantizationSpec(torch.int8, MinMaxObserver, -127, 127, torch.per_tensor_affine)
    assert Subject(quantizer).known() is None


@pytest.mark.parametrize(("quantizer", "seconds", "at_once"), [(Outputs, 30.0, False), (Slow, 0.2, True)])
def test_a_quantizer_that_takes_its_time_for_any_model_sees_all_examples_as_one(
    quantizer: Any, seconds: float, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without operators tells."""
    monkeypatch.setattr(probing, "FOR_NOTHING", seconds)
    trial = probing._trial(foreign(quantizer()), probe_child.Stopwatch(), probing._probes())
    assert trial.at_once == at_once
    assert trial.each == (trial.limit if at_once else probing.EACH)
    assert not trial.strict


@pytest.mark.long
def test_all_examples_as_one_model_give_the_same_rows(
    children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one process for all of them, and rows that say so."""
    found = rows_of(ByShape())
    children.clear()
    monkeypatch.setattr(probing._Trial, "is_slow", lambda trial: True)
    again = probing.probe(foreign(ByShape()), Subject(ByShape()), again=True)
    assert len(children) == 1
    assert all(row.probed.endswith("; all examples as one model") for row in again)
    assert [attrs.evolve(row, probed="") for row in again] == [attrs.evolve(row, probed="") for row in found]


@pytest.mark.parametrize(("tried", "count"), [((operators.ADD,), 0), ((operators.LINEAR, operators.ADD), 1)])
def test_strict_exports_are_tried_only_where_they_can_add_something(
    tried: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot where all that most quantizers take is annotated already."""
    monkeypatch.setattr(probing, "_BEFORE_RELU", tried)
    stricts, export = [], torch.export.export

    def counted(*arguments: Any, **options: Any) -> Any:
        stricts.append(options["strict"])
        return export(*arguments, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    trial = probing._trial(foreign(Outputs()), probe_child.Stopwatch(), probing._probes())
    assert not trial.strict
    assert stricts.count(True) == count


@pytest.mark.parametrize(
    ("error", "cause", "text"),
    [
        (KeyError("t"), None, "it fails with KeyError: 't'"),
        (QuantizerError("Q failed in annotate."), ValueError("no\nmore"), "it fails with ValueError: no"),
        (SharingError("a shares with itself."), None, "what it annotates is refused: a shares with itself"),
        (SharingError("a shares with b."), ValueError(1), "what it annotates is refused: a shares with b"),
        (QuantizerError("The graph changed."), None, "what it annotates is refused: The graph changed"),
    ],
)
def test_an_error_of_ours_says_what_the_quantizer_did(
    error: Exception, cause: Exception | None, text: str
) -> None:
    """An error of its code is told as it is, in one line."""
    error.__cause__ = cause
    assert probe_child._in_words(error) == text


@pytest.mark.long
def test_a_tensor_that_is_joined_with_itself_has_a_row_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row does not show how a circle is found."""
    monkeypatch.setattr(probing, "OPERATORS", (operators.MUL,))
    monkeypatch.setattr(probing, "_BEFORE_RELU", ())
    (text,) = (row.scope for row in rows_of(Joins()) if not row.specs)
    assert text.endswith(": what it annotates is refused: An edge or node takes its parameters from itself")


@pytest.mark.parametrize(("text", "limit"), [("", probe_child.ALL), ("0.5", 0.5), ("200", 200.0)])
def test_a_variable_sets_the_limit_of_all_examples(
    text: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another limit the file is another one, so that all is probed anew."""
    monkeypatch.delenv(probe_child.LIMIT)
    before = Subject(Outputs()).file
    monkeypatch.setenv(probe_child.LIMIT, text)
    assert probe_child.limit() == limit
    assert (Subject(Outputs()).file == before) == (not text)


@pytest.mark.parametrize("text", ["a minute", "-1", "nan", "0"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv(probe_child.LIMIT, text)
    with pytest.raises(IntentError, match="TORCHQUILT_PROBING_SECONDS"):
        rows_of(Outputs())


@pytest.mark.long
@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1, "rows": 3}', b"\xff\xfe", b"[]"])
def test_a_damaged_file_is_ignored_and_written_again(
    cache: Path, children: list[Any], content: bytes
) -> None:
    """A damaged file is as good as none."""
    first = rows_of(Outputs())
    (file,) = cache.iterdir()
    file.write_bytes(content)
    children.clear()
    assert rows_of(Outputs()) == first
    assert children
    assert tq.Capabilities.from_json(file.read_text()) == first
    assert [*cache.iterdir()] == [file]


@pytest.mark.long
def test_without_a_folder_to_write_it_is_probed_each_time(cache: Path, children: list[Any]) -> None:
    """A file where the folder would be is no error."""
    cache.parent.write_text("in the way")
    assert len(rows_of(Outputs())) == 1
    children.clear()
    assert len(rows_of(Outputs())) == 1
    assert children


@pytest.mark.long
@pytest.mark.usefixtures("children")
@pytest.mark.parametrize("is_exact", [True, False])
def test_a_time_out_is_kept_where_other_work_cannot_be_the_reason(
    cache: Path, is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system that does not tell for how long a process waited for a processor, it is tried again."""
    monkeypatch.setattr(probing, "EACH", 1.0)
    monkeypatch.setattr(probing._Trial, "is_slow", lambda trial: False)
    monkeypatch.setattr(probe_child, "_waited", lambda process: 0.0 if is_exact else None)
    (row,) = rows_of(Hangs()).filter("t")
    assert "took longer than 1 s" in row.scope
    assert cache.exists() == is_exact
    rows_of(Outputs())
    assert len([*cache.iterdir()]) == 1 + is_exact


@pytest.mark.parametrize(("waited", "answer"), [(None, "annotating it took longer than 0 s"), (60.0, "done")])
def test_waiting_for_a_processor_does_not_count(
    waited: float | None, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child gets the time for which none was free, and the time of all does not have it either."""

    def late() -> str:
        time.sleep(0.3)
        return "done"

    monkeypatch.setattr(probe_child, "_waited", lambda process: 0.0 if process == "thread-self" else waited)
    stopwatch = probe_child.Stopwatch()
    assert probe_child.in_child(late, 0.05, stopwatch) == answer
    assert (stopwatch.seconds < 0) == (waited is not None)


def test_this_system_tells_what_waits_for_a_processor() -> None:
    """Linux does: seconds, for a process and for this thread."""
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("there is no /proc/self/schedstat")
    assert probe_child.Stopwatch().is_exact
    assert 0 <= probe_child._waited(os.getpid()) < 3600


@pytest.mark.long
def test_a_quantizer_that_reads_what_only_strict_exports_say_is_probed_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows name the condition, and so does the ledger of a program that was exported otherwise."""
    monkeypatch.setattr(probing, "_BEFORE_RELU", (operators.LINEAR, operators.ADD))
    (row,) = rows_of(BySource())
    assert row.pattern == "add"
    assert row.constraints == (("strict_export", "the program is exported with strict=True"),)
    model = model_of("residual")
    taken, text = _sum_of(tq.explain(exported(model), BySource()))
    assert taken is None
    assert "if the program is exported with strict=True" in text
    assert _sum_of(tq.explain(exported(model, strict=True), BySource())) == ("BySource", "")


def _sum_of(ledger: Any) -> tuple[str | None, str]:
    """The quantizer that took the sum of a model, and the reason why none did."""
    ((taken, reasons),) = (
        (row.quantizer, row.reasons) for row in ledger.rows if row.op.startswith("aten.add")
    )
    return taken, "".join(reason.text for reason in reasons)


@pytest.mark.parametrize("strict", [False, True])
def test_before_probing_the_ledger_asks_for_a_strict_export_where_that_may_be_the_reason(
    strict: bool,
) -> None:
    """Nothing is annotated, and the program says nothing of modules and functions: the reason names both."""
    ledger = tq.explain(exported(model_of("linear"), strict=strict), BySource())
    (text,) = (row.reasons[0].text for row in ledger.rows)
    assert ("strict=True" in text) == (not strict)


@pytest.mark.long
def test_where_processes_cannot_be_copied_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried in this process instead, and no row supports anything."""
    monkeypatch.setattr(probe_child.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    found = rows_of(Outputs())
    assert found
    assert not any(row.specs for row in found)
    assert all("cannot copy a process" in row.scope for row in found)


@pytest.mark.long
@pytest.mark.usefixtures("children")
@pytest.mark.parametrize(
    ("quantizer", "text"),
    [
        (Hangs, "took longer than 2 s"),
        (Dies, "ended the process (7)"),
        (Fails, "it fails with KeyError: 't is not known'"),
    ],
)
def test_an_example_without_an_answer_is_a_row_that_says_so(
    quantizer: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other operators are known, and nothing is supported that is not."""
    monkeypatch.setattr(probing, "EACH", 2.0)
    found = rows_of(quantizer())
    assert [row.pattern for row in found if row.specs] == ["add"]
    (row,) = found.filter("t")
    assert text in row.scope
    spec = tq.QuantizationSpec("int8")
    for config in (tq.QuantizationConfig(spec, spec), tq.QuantizationConfig(weight=spec)):
        answer = found.supports("t", config)
        assert not answer
        assert text in str(answer)


@pytest.mark.long
@pytest.mark.usefixtures("children")
def test_all_of_probing_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that is not reached any more has a row that says so."""
    monkeypatch.setattr(probing, "EACH", 0.5)
    monkeypatch.setenv(probe_child.LIMIT, "1")

    begin = time.monotonic()
    found = rows_of(Slow())
    assert time.monotonic() - begin < 10
    assert {row.pattern for row in found} >= {op.name for op in FEW}
    assert any("not reached in the time that probing may take (1 s)" in row.scope for row in found)


def test_a_quantizer_that_edits_nothing_has_no_rows(children: list[Any]) -> None:
    """That is an answer, too, and kept."""
    assert len(rows_of(Nothing())) == 0
    children.clear()
    assert len(rows_of(Nothing())) == 0
    assert children == []


@pytest.mark.long
def test_a_row_that_depends_on_shape_says_so() -> None:
    """Annotated in one example and not in another of the same operator: examples of both are named."""
    (row,) = rows_of(ByShape())
    ((code, text),) = row.constraints
    assert code == "depends_on_example"
    assert row.scope.startswith("in ")
    assert row.scope.endswith(" examples")
    taken, left = text.split("; and not as in ")
    assert "'add of float32 4x8'" in taken
    assert "'add of float32 2x4x8'" in left


@pytest.mark.long
def test_the_rows_of_xnnpacks_are_those_of_its_config(children: list[Any]) -> None:
    """Query, difference and composition work as with any backend's; prepare and explain probe nothing."""
    model = exported(model_of("attention"))
    quantizer = VENDORS["xnnpack per channel"]()
    both = tq.ComposableQuantizer([quantizer, "executorch_embedding:byte_per_row"])
    before = tq.explain(model, both)
    tq.prepare_pt2e(model, both)
    assert children == []
    reasons = {row.op: row.reasons for row in before.rows}
    first = reasons["aten.softmax.int"][0].text
    assert first.startswith("not annotated by XNNPACKQuantizer, which says no more")

    found = both.quantization_capabilities()
    assert found.backends == ("XNNPACKQuantizer", "executorch_embedding")
    byte = tq.QuantizationSpec("int8")
    weight = tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=0, symmetric=True, eps=2**-12)
    assert found.supports(nn.Linear, tq.QuantizationConfig(byte, byte, weight))
    assert not found.supports(nn.Linear, tq.QuantizationConfig(byte, byte, byte))
    assert not found.supports("softmax", tq.QuantizationConfig(byte, byte))
    other = rows_of(VENDORS["xnnpack per tensor"]())
    changed = rows_of(VENDORS["xnnpack per channel"]()).diff(other)
    assert {change.field for change in changed} == {"weight"}
    assert "linear" in {row.pattern for row in found if row.probed}
    assert tq.Capabilities.from_json(found.to_json()) == found

    children.clear()
    after = tq.explain(model, both)
    assert children == []
    texts = {row.op: row.reasons[0].text for row in after.rows if row.reasons}
    assert "nor was any example of it when that was probed" in texts["aten.softmax.int"]
    assert {row.op: row.quantizer for row in after.rows} == {row.op: row.quantizer for row in before.rows}


@pytest.mark.long
def test_the_ledger_names_the_nearest_row() -> None:
    """For an operator that is quantized elsewhere: the specs, and where it would be taken."""
    quantizer = VENDORS["xnnpack per channel"]()
    rows_of(quantizer)
    model = nn.Sequential(nn.Softmax(-1), nn.Flatten())
    ledger = tq.explain(torch.export.export(model.eval(), (torch.randn(2, 3, 4),)), quantizer)
    (text,) = (row.reasons[0].text for row in ledger.rows if row.op == "aten.flatten.using_ints")
    assert "probed, it takes flatten behind a quantized operator (input, output: int8" in text


@pytest.mark.long
def test_what_is_recorded_does_not_depend_on_probing() -> None:
    """A prepared model records what quantizers state; a foreign one states nothing, probed or not."""
    quantizer = VENDORS["xnnpack per channel"]()
    quantized = [_record(quantizer)]
    rows_of(quantizer)
    assert _record(quantizer) == quantized[0]


def _record(quantizer: Any) -> Any:
    from torchquilt.pt2e.annotate import annotate_copy
    from torchquilt.pt2e.prepare import record_of

    record = record_of(annotate_copy(exported(model_of("linear")), foreign(quantizer)))
    return record["capabilities"], record["backends"]


@pytest.mark.long
def test_the_command_line_asks_a_quantizer_that_a_function_makes(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows as text and as JSON, and the difference of two of them."""
    from torchquilt.cli import main

    (tmp_path / "mine.py").write_text("from plugins.torchao.test_probing import ByShape, Outputs\n")
    monkeypatch.chdir(tmp_path)
    assert main(["capabilities", "mine:Outputs", "--op", "add"]) == 0
    assert "output: int8 per_tensor affine" in capsys.readouterr().out
    for name in ("Outputs", "ByShape"):
        assert main(["capabilities", f"mine:{name}", "--json"]) == 0
        (tmp_path / f"{name}.json").write_text(capsys.readouterr().out)
    assert json.loads((tmp_path / "Outputs.json").read_text())["rows"][0]["probed"]
    assert main(["diff", "Outputs.json", "ByShape.json"]) == 1
    assert "ByShape" in capsys.readouterr().out


@pytest.mark.long
def test_the_key_is_that_of_the_content() -> None:
    """Equal for two that are configured alike, in another process, and after use; different otherwise."""
    names = [name for name in VENDORS if name != "qualcomm"]
    keys = {name: Subject(VENDORS[name]()).file.name for name in names}
    assert len({*keys.values()}) == len(names)
    assert keys == {name: Subject(VENDORS[name]()).file.name for name in names}
    for name in names:
        used = VENDORS[name]()
        tq.explain(exported(model_of("linear")), used)
        assert Subject(used).file.name == keys[name], name
    code = f"""
import json
from plugins.torchao.vendors import VENDORS
from torchquilt.testing.probe_cache import Subject
print(json.dumps({{name: Subject(VENDORS[name]()).file.name for name in {names!r}}}))
"""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == keys


def test_functions_in_a_config_are_told_apart_by_what_they_do() -> None:
    """By their code, their constants and what they enclose; not by where they are in memory."""

    def made(number: int) -> Any:
        return lambda node: node == number

    first, again, other = (Subject(Outputs(made(number))).file for number in (1, 1, 2))
    assert first == again
    assert first != other
    assert Subject(Outputs(lambda: "a")).file != Subject(Outputs(lambda: "b")).file


def test_a_name_that_an_object_makes_of_its_address_is_no_content() -> None:
    """Those of NNCF's algorithms are of that kind: equal ones were probed each time."""

    class Named(Outputs):
        def __init__(self) -> None:
            super().__init__()
            self.key = f"outputs_{hash(self)}"

    first, again = Named(), Named()
    assert first.key != again.key
    assert Subject(first).file == Subject(again).file


@pytest.mark.exhaustive
@pytest.mark.parametrize("vendor", [*VENDORS, *SLOW])
def test_each_quantizer_is_probed_within_a_minute(vendor: str) -> None:
    """Each that imports here, from nothing."""
    quantizer = {**VENDORS, **SLOW}[vendor]()
    begin = time.monotonic()
    found = rows_of(quantizer)
    assert time.monotonic() - begin < 60
    if vendor in SLOW and not any(row.specs for row in found):
        # It takes about as long as the limit: on a slower machine each row says so.
        assert all("not reached in the time that probing may take" in row.scope for row in found)
        return
    assert any(row.specs for row in found)
    # Those of Cadence look for the module that an operator is of.
    is_strict = {"strict_export" in dict(row.constraints) for row in found if row.specs}
    assert is_strict == {vendor.startswith("cadence")}
