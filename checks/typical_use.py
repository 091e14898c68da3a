"""Typical use of the public names, for type checkers alone: `make check` has mypy and pyright read it.

It is written as users write it. ``assert_type`` says what an expression has to be: a name that became ``Any``
would pass everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from typing_extensions import assert_type

import torchquilt as tq
from torchquilt import qat, recovery
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def data() -> Iterator[tuple[torch.Tensor]]:
    """Batches, as a generator."""
    yield (torch.zeros(1, 8),)


def one_line(model: torch.nn.Module) -> torch.fx.GraphModule:
    """The whole flow in one call, with each kind of data."""
    first = next(data())
    tq.quantize(model, first, "xnnpack:dynamic_int8_per_channel")
    tq.quantize(model, {"x": first[0]}, XNNPACKQuantizer(), [{"x": first[0]}], show=False)
    return tq.quantize(model, first, ["executorch_embedding:byte_per_row", "xnnpack:static_int8"], data())


def by_steps(exported: torch.export.ExportedProgram, path: Path) -> tq.LoweredProgram:
    """Composition, capabilities, ledger, saving, lowering."""
    config = get_symmetric_quantization_config(is_per_channel=True)
    first = XNNPACKQuantizer().set_global(config).set_module_name("head", None)
    first.set_object_type(torch.nn.Linear, config)
    composed = tq.ComposableQuantizer([first, "executorch_embedding:byte_per_row"])
    assert_type(composed.quantization_capabilities(), tq.Capabilities)
    capabilities = composed.quantization_capabilities()
    linears = capabilities.filter(torch.nn.Linear, mode="static", role="weight", bits=8)
    assert_type(next(row.mode == "dynamic" for row in linears), bool)
    assert_type(capabilities.supports(torch.nn.Linear, config), tq.Support)
    assert_type(tq.explain(exported, composed), tq.Ledger)
    prepared = tq.prepare_pt2e(exported, composed, activation_observer="percentile:99.9")
    quantized = tq.convert_pt2e(tq.calibrate(prepared, data(), limit=8), unseen="float")
    for row in tq.ledger_of(quantized).left_in_float:
        print(row.node, row.op, row.code, [reason.text for reason in row.reasons])
    tq.save(quantized, path, next(data()))
    assert_type(tq.load(path).module(), torch.fx.GraphModule)
    program = tq.lower(quantized, next(data()), target="executorch", verify=40.0)
    assert_type(program.size, int)
    program.save(path.with_suffix(".pte"))
    return program


def training(exported: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """Quantization-aware training."""
    prepared = tq.prepare_qat_pt2e(exported, "xnnpack:static_int8", fake_quantize="learned")
    tq.move_exported_model_to_train(prepared)
    qat.freeze_observers(prepared)
    tq.move_exported_model_to_eval(prepared)
    return tq.convert_pt2e(prepared)


def accuracy(exported: torch.export.ExportedProgram, quantized: torch.fx.GraphModule) -> None:
    """Comparison, sensitivity, search, recovery, targets."""

    def metric(model: object) -> float:
        return 1.0

    compared = tq.compare(exported, quantized, data())
    assert_type(compared, tq.Comparison)
    assert_type(tq.sensitivity(exported, "xnnpack:static_int8", list(data()), metric), tq.Sensitivity)
    found = tq.search(exported, "xnnpack:static_int8", list(data()), metric, max_drop="1%")
    assert_type(found, tq.SearchResult)
    prepared = tq.prepare_pt2e(exported, "xnnpack:static_int8")
    recovery.smooth(prepared, list(data()))
    table = tq.compare_targets(exported, "static_int8_per_channel", list(data()), next(data()))
    assert_type(table, tq.TargetComparison)


def plugins() -> None:
    """Installed backends and targets."""
    for backend in tq.backends():
        assert_type(backend, tq.Backend)
        if backend.status == "ok" and backend.manifest is not None:
            assert_type(backend.manifest.preset_names, tuple[str, ...])
    assert_type(tq.Recipe.load("recipe.toml").quantizer(), tq.ComposableQuantizer)
