"""The ledger: what is explained is what is done, and every operator in float has its reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

import torchquilt as tq
from pages import Page
from strategies import Fn, export, normal
from torchquilt.ledger import ledger as ledger_module
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from work import calls_in, growth

STATIC = get_symmetric_quantization_config()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
IDS = torch.tensor([[1, 4, 2]])


class Encoder(nn.Module):
    """An embedding, two linears with a relu between, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """norm(second(relu(first(embed(ids)))))."""
        return self.norm(self.second(torch.relu(self.first(self.embed(ids)))))


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    """The encoder, exported."""
    torch.manual_seed(0)
    return export(Encoder(), IDS)


def composed() -> tq.ComposableQuantizer:
    """Embeddings by one backend, the first linear static and the rest dynamic by another."""
    return tq.ComposableQuantizer(
        [
            ExecuTorchEmbeddingQuantizer(),
            XNNPACKQuantizer().set_module_name("first", STATIC),
            XNNPACKQuantizer().set_global(DYNAMIC),
        ]
    )


def test_each_operator_has_an_owner_or_a_reason(exported: torch.export.ExportedProgram) -> None:
    """A row names quantizer, pattern and rule, or has a stable code and a sentence."""
    ledger = tq.explain(exported, composed())
    found = {row.node: (row.quantizer, row.pattern, row.rule, row.code) for row in ledger}
    assert found == {
        "embedding": ("ExecuTorchEmbeddingQuantizer", "embedding_byte", "everywhere", ""),
        "linear": ("XNNPACKQuantizer", "linear", "module first", ""),
        "relu": (None, "", "", "config_not_supported"),
        "linear_1": ("XNNPACKQuantizer", "linear", "everywhere", ""),
        "layer_norm": (None, "", "", "unsupported_op"),
    }
    assert all(row.reasons[0].text for row in ledger.left_in_float)


def test_a_reason_is_one_of_a_row_that_takes_the_config() -> None:
    """The reason is that of the row that takes the config, and not that other rows want another config."""

    def forward(self: Fn, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc(x)
        hidden.view(-1).mul_(2.0)
        return self.out(hidden)

    static = XNNPACKQuantizer().set_global(STATIC)
    ledger = tq.explain(export(Fn(forward, fc=nn.Linear(6, 6), out=nn.Linear(6, 6)), normal(3, 6)), static)
    assert ledger["linear"].code == "writes_in_place"


def test_what_is_explained_is_what_is_done(exported: torch.export.ExportedProgram) -> None:
    """prepare, convert, save and load keep the ledger that explain gives."""
    ledger = tq.explain(exported, composed())
    prepared = tq.calibrate(tq.prepare_pt2e(exported, composed()), [(IDS,)])
    assert tq.ledger_of(prepared) == ledger
    assert tq.ledger_of(tq.convert_pt2e(prepared)) == ledger


def test_asking_changes_nothing(exported: torch.export.ExportedProgram) -> None:
    """The graph, its metadata and the tensors are as they were."""
    before = (str(exported.graph), [sorted(node.meta) for node in exported.graph.nodes])
    tq.explain(exported, composed())
    assert (str(exported.graph), [sorted(node.meta) for node in exported.graph.nodes]) == before


def test_shares_count_each_parameter_once(exported: torch.export.ExportedProgram) -> None:
    """Operators, multiply-adds and bytes, of the whole and by who took them."""
    whole = tq.explain(exported, composed()).share()
    assert whole.nodes == (3, 5)
    assert whole.macs == (2 * 3 * 6 * 6, 2 * 3 * 6 * 6)
    assert whole.parameter_bytes == (4 * (7 * 6 + 2 * (36 + 6)), 4 * (7 * 6 + 2 * (36 + 6) + 12))
    by = {share.name: share.nodes for share in tq.explain(exported, composed()).by_quantizer()}
    assert by == {"ExecuTorchEmbeddingQuantizer": (1, 5), "XNNPACKQuantizer": (2, 5)}


def test_json_brings_a_ledger_back(exported: torch.export.ExportedProgram) -> None:
    """The text is read as an equal ledger; text of another kind is an error of ours."""
    ledger = tq.explain(exported, composed())
    assert tq.Ledger.from_json(ledger.to_json()) == ledger
    for text in ("{}", "[]", '{"schema": 99}', "nonsense", '{"schema": 1, "rows": [3]}'):
        with pytest.raises(tq.ModelError):
            tq.Ledger.from_json(text)


def test_a_ledger_is_read_printed_and_compared_without_torch(
    exported: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    """A process that never imports torch reads the JSON, and prints and shows what this one does."""
    ledger = tq.explain(exported, composed())
    (tmp_path / "ledger.json").write_text(ledger.to_json())
    code = """
import sys
from pathlib import Path
import torchquilt as tq
read = tq.Ledger.from_json(Path(sys.argv[1]).read_text())
assert read.to_json() == Path(sys.argv[1]).read_text()
assert read.diff(read) == () and read["linear"].is_quantized
print(read, read._repr_html_())
assert "torch" not in sys.modules, "torch was imported"
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ledger.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{ledger} {ledger._repr_html_()}".strip()


def test_a_ledger_in_a_notebook_shows_all_that_it_says(exported: torch.export.ExportedProgram) -> None:
    """The shares, what stays in float with reasons, and a row for each operator; nothing is loaded."""
    ledger = tq.explain(exported, composed())
    page = Page(ledger._repr_html_())
    assert not page.open
    assert "3 of 5 (60%)" in page.texts
    assert "config_not_supported" in page.texts
    assert "5 operators" in page.texts
    assert all(row.node in page.texts for row in ledger)
    assert any("int8 per_token" in text for text in page.texts)
    assert {name for _, found in page.tags for name in found} <= {"style"}
    assert not any("url" in (found.get("style") or "") for _, found in page.tags)


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "a & b < c", "\"'>"])
def test_a_ledger_in_a_notebook_escapes_every_text(evil: str, exported: torch.export.ExportedProgram) -> None:
    """Names of modules, rules, quantizers and problems are text, whatever is in them."""
    ledger = tq.explain(exported, composed())
    first, *rest = ledger.rows
    nasty = attrs.evolve(first, node=evil, module=evil, rule=evil, pattern=evil, quantizer=evil)
    boundary = ledger_module.Boundary(evil, evil, evil, evil, evil, evil)
    changed = attrs.evolve(ledger, rows=(nasty, *rest), boundaries=(boundary,), problems=(evil,))
    plain = attrs.evolve(changed, rows=ledger.rows)
    page = Page(changed._repr_html_())
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(plain._repr_html_()).tags]
    assert page.texts.count(evil) == 5 + 1 + 1  # the row, the share of the quantizer, the problem
    assert str(boundary) in page.texts


def test_a_diff_names_the_nodes_that_are_decided_otherwise(exported: torch.export.ExportedProgram) -> None:
    """Only those, with both decisions."""
    first = tq.explain(exported, composed())
    second = tq.explain(exported, XNNPACKQuantizer().set_global(DYNAMIC))
    assert [change.node for change in first.diff(second)] == ["embedding", "linear"]
    assert first.diff(first) == ()


def test_problems_are_kept_where_strict_is_off(exported: torch.export.ExportedProgram) -> None:
    """A rule about nothing is a warning and a line of the ledger instead of an error."""
    quantizer = XNNPACKQuantizer().set_global(DYNAMIC).set_module_name("frist", None)
    with pytest.raises(tq.IntentError, match="frist"):
        tq.explain(exported, quantizer)
    with pytest.warns(UserWarning, match="did you mean first"):
        ledger = tq.explain(exported, quantizer, strict=False)
    assert "frist" in ledger.problems[0]


def test_a_module_pattern_stands_for_one_part_of_a_path() -> None:
    """layers.* is every layer, and not what is called layers10."""
    layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    model = Fn(
        lambda self, x: self.other(self.layers[0](x) + self.layers[2](x)),
        layers=layers,
        other=nn.Linear(6, 6),
    )
    ledger = tq.explain(export(model, normal(2, 6)), XNNPACKQuantizer().set_module_name("layers.*", DYNAMIC))
    assert [row.module for row in ledger.quantized] == ["layers.0", "layers.2"]


def test_the_cost_of_a_ledger_grows_with_the_graph_and_not_with_its_square() -> None:
    """Twice as long a chain is twice the work in all of torchquilt."""

    def work(length: int) -> int:
        layers = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(length))
        exported = export(nn.Sequential(*layers), normal(2, 4))
        quantizer = XNNPACKQuantizer().set_global(STATIC)
        return calls_in((tq,), lambda: tq.explain(exported, quantizer))

    assert growth(work, 5) <= 2.1


def test_a_row_that_is_not_there_is_answered_with_the_nearest(exported: torch.export.ExportedProgram) -> None:
    """The error is a KeyError for a program and a sentence for a reader."""
    ledger = tq.explain(exported, composed())
    with pytest.raises(KeyError) as caught:
        ledger["liner"]
    assert isinstance(caught.value, tq.LedgerError)
    assert "did you mean 'linear'" in str(caught.value)


class Rewritten(nn.Module):
    """Operators that XNNPACK takes in another form: a product, parts, an index, zeros, a quotient."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.weight = nn.Conv2d(4, 4, 3), nn.Parameter(torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two outputs."""
        maps = self.convolution(x)
        low, high = maps.mean([2, 3]).chunk(2, 1)
        product = torch.matmul(torch.cat([high, low], 1), self.weight)[:, 1] / 3.0
        return nn.functional.pad(maps[:, 1], (1, 1)), product


def test_a_ledger_speaks_of_the_operators_that_the_user_wrote() -> None:
    """An operator in another form is one row, with its first name, also once it is lowered."""
    program = export(Rewritten(), torch.randn(1, 4, 8, 8))
    written = [
        (node.name, str(node.target))
        for node in program.module().graph.nodes
        if node.op == "call_function" and node.target.__class__.__name__ == "OpOverload"
    ]
    prepared = tq.prepare_pt2e(program, XNNPACKQuantizer().set_global(STATIC))
    prepared(torch.randn(1, 4, 8, 8))
    quantized = tq.convert_pt2e(prepared)
    lowered = tq.lower(quantized, (torch.randn(1, 4, 8, 8),))
    for ledger in (tq.ledger_of(prepared), lowered.ledger):
        assert ledger is not None
        rows = [(row.node, row.op) for row in ledger if "getitem" not in row.node]
        assert rows == [one for one in written if "chunk" not in one[0]]
        assert all(row.is_quantized for row in ledger)
    assert lowered.ledger is not None
    assert {row.lowered.code for row in lowered.ledger if row.lowered} == {"delegated_as_integers"}
    assert lowered.ledger["select"].written_as[-1] == ("select", "aten.reshape.default")
    assert tq.Ledger.from_json(lowered.ledger.to_json()) == lowered.ledger


def test_functions_of_python_have_the_names_that_people_import() -> None:
    """No row shows how Python prints a function."""
    program = export(Fn(lambda _, x: x.max(1)[0] + 1), torch.randn(4, 3))
    ops = {row.op for row in tq.explain(program, XNNPACKQuantizer().set_global(STATIC), strict=False)}
    assert "operator.getitem" in ops
    assert not any("<" in op for op in ops)


@pytest.mark.parametrize("count", [1, 2])
def test_one_operator_is_not_told_as_several(count: int) -> None:
    """Counts agree with their nouns."""
    program = export(nn.Sequential(*(nn.Linear(2, 2) for _ in range(count))), torch.randn(1, 2))
    told = str(tq.explain(program, XNNPACKQuantizer().set_global(STATIC)))
    assert ("1 operator " in told) == (count == 1)
    assert ("2 operators " in told) == (count == 2)


def test_what_a_console_shows_unasked_fits_on_a_screen(
    exported: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    """Reprs are short, however large the thing is; print shows all of it."""
    prepared = tq.prepare_pt2e(exported, composed())
    prepared(IDS)
    quantized = tq.convert_pt2e(prepared)
    tq.save(quantized, tmp_path / "model.pt2", (IDS,))
    artifact = tq.load(tmp_path / "model.pt2")
    ledger, capabilities = tq.ledger_of(quantized), XNNPACKQuantizer.backend_capabilities()
    program = tq.lower(quantized, (IDS,))
    shown = (artifact, artifact.lock, ledger, ledger.share(), capabilities, program)
    assert [len(repr(one)) for one in shown if len(repr(one)) > 300] == []
    changes = capabilities.diff(tq.Capabilities())
    assert len(str(changes).split("\n")) == len(capabilities)
    assert repr(changes).split("\n")[-1] == f"… and {len(capabilities) - 20} more"
