"""save: a quantized model and its lock, in one file, whole or not at all."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

from torchquilt._internal.atomic_files import check_is_replaceable, replacing
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.artifact import screening
from torchquilt.artifact.archive import LOCK_ENTRY, PROGRAM_ENTRY
from torchquilt.artifact.lock import Entry, Lock, Plugin, own_version
from torchquilt.artifact.marks import check_marks
from torchquilt.artifact.program import operator_counts, quantized_tensors, stored_tensors
from torchquilt.artifact.reexport import export_again
from torchquilt.artifact.reproducible import numbered_graphs, without_unused_memory
from torchquilt.errors import ArtifactError
from torchquilt.plugins.registry import backends

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule


@default_global_state()
def save(
    quantized: GraphModule | ExportedProgram,
    path: str | os.PathLike[str],
    example_inputs: object = None,
    dynamic_shapes: Any = None,
) -> Lock:
    """Write a quantized model and the lock of what made it to a file, whole or not at all.

    The file is what ``torch.export.save`` writes, with one more entry; ``torch.export.load`` reads it, too.
    When writing fails (a full disk, an exception, the end of the process), what was at ``path`` stays.

    Args:
        quantized: what :func:`torchquilt.convert_pt2e` returned, or an ExportedProgram of it, which is taken
            as it is.
        path: the file; by custom it ends in ``.pt2``.
        example_inputs: for a GraphModule, which has to be exported again: one batch as for
            :func:`torchquilt.calibrate`. Dimensions that are dynamic need a size of 2 or more in it.
        dynamic_shapes: as for ``torch.export.export``. By default the dimensions that were dynamic when the
            model was exported stay so.

    Returns:
        The lock. Its ``sha256`` may be kept elsewhere and given to :func:`torchquilt.load`.

    Raises:
        ArtifactError: example inputs are missing or do not fit, the model holds what cannot be saved without
            pickling (objects, subclasses of tensors), a node has a mark that is no JSON, or the file cannot
            be written.
        ModelError: the model is not a converted one.

    Warns:
        UserWarning: the example inputs of an ExportedProgram are objects that would have to be pickled; they
            are left out. Marks in the metadata of nodes are not kept.
    """
    with _telling_of_files(path):
        check_is_replaceable(path)
    program = _program(quantized, example_inputs, dynamic_shapes)
    check_marks(quantized)
    record = _record(quantized) or _record(program.graph_module)
    # Refuse what cannot be saved, before anything is written.
    stored_tensors(program, {})
    _check_outputs(program)
    program = _with_plain_inputs(without_unused_memory(program))
    with _telling_of_files(path), replacing(path) as file:
        with numbered_graphs(program):
            _write_program(program, file)
        lock = _lock(program, record, file)
        with zipfile.ZipFile(file, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            # Made without the time of day, which would make two files of one model differ.
            archive.writestr(zipfile.ZipInfo(f"{root}/{LOCK_ENTRY}"), lock.to_json())
    return lock


@contextlib.contextmanager
def _telling_of_files(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make an error of ours of what goes wrong with a file.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{path} could not be written; what was there before is untouched.",
            path=path,
            got=str(error),
            remedy="make room, or save to another place",
        ) from error


def _record(model: object) -> Mapping[str, Any]:
    """Record that the flow left on a model: the quantizer and its intent, backends, the ledger; or
    nothing.
    """
    from torchquilt.pt2e.model_record import RECORD_KEY

    found = getattr(model, "meta", {}).get(RECORD_KEY)
    return found if isinstance(found, Mapping) else {}


# ----------------------------------------------------------------------------------------------------------
# The program
# ----------------------------------------------------------------------------------------------------------


def _program(quantized: object, example_inputs: object, dynamic_shapes: Any) -> ExportedProgram:
    """The ExportedProgram that is going to be saved."""
    import torch

    from torchquilt.pt2e.model_record import check_is_final

    if isinstance(quantized, torch.export.ExportedProgram):
        if example_inputs is not None or dynamic_shapes is not None:
            raise ArtifactError(
                "An ExportedProgram is saved as it is, so example inputs and dynamic shapes have no effect.",
                expected="no example_inputs and no dynamic_shapes with it",
                got=", ".join(
                    name
                    for name, value in (
                        ("example_inputs", example_inputs),
                        ("dynamic_shapes", dynamic_shapes),
                    )
                    if value is not None
                ),
                remedy="leave them out, or pass what convert_pt2e returned",
            )
        _check_calls(quantized.graph_module)
        return quantized
    expected = "what convert_pt2e returned, or an ExportedProgram of it"
    quantized = check_is_final(quantized, "saved", "save", expected)
    _check_calls(quantized)  # here, since what is exported again has lost its source lines
    return export_again(
        quantized,
        example_inputs,
        dynamic_shapes,
        to_be="saved",
        remedy="save(quantized, path, example_inputs=batch) with a batch as calibrate takes it, or () "
        "where there are no inputs; or save an ExportedProgram of it",
    )


def _check_outputs(program: ExportedProgram) -> None:
    """Refuse a program that returns a text: torch writes it, and cannot read it."""
    for spec in program.graph_signature.output_specs:
        if isinstance(getattr(spec.arg, "value", None), str):
            raise ArtifactError(
                "The model returns a text, which torch can save and not load.",
                expected="outputs that are tensors, numbers or None",
                got=repr(getattr(spec.arg, "value", None)),
                remedy="return it as something else, or leave it out",
            )


def _check_calls(model: GraphModule) -> None:
    """Refuse a model that runs a subgraph which returns nothing: torch writes it, and cannot read it."""
    from torchquilt.graph.subgraph_inlining import is_without_results
    from torchquilt.graph.subgraphs import call_of, nodes_of

    def where(node: Any) -> str:
        call = call_of(node)
        graphs = call.graphs() if call else ()
        inside = [inner for graph in graphs for inner in graph.nodes if inner.op == "call_function"]
        traces = (str(inner.meta.get("stack_trace") or "") for inner in [*inside, node])
        # The last two lines of a trace are the source line and its code.
        return "\n".join(next(filter(None, traces), "a source line that is not known").splitlines()[-2:])

    for node in nodes_of(model):
        if is_without_results(node):
            raise ArtifactError(
                "The model runs a subgraph that returns nothing, which torch can save and not load.",
                node=node.name,
                expected="branches, loops and regions under autocast that return something",
                got=f"{node.target} without a result, at {where(node)}",
                remedy="return what it writes, or move what it does out of it",
            )


def _with_plain_inputs(program: ExportedProgram) -> ExportedProgram:
    """The program, without its example inputs where reading them back would run code."""
    import torch

    if program.example_inputs is None:
        return program
    pickled = io.BytesIO()
    try:
        torch.save(program.example_inputs, pickled)
        screening.check_inputs(pickled.getvalue())
    except Exception as error:  # what cannot even be pickled fails in any way it likes
        warnings.warn(
            "The example inputs of the program are left out of the file: reading them back could run code. "
            f"({type(error).__name__}: {getattr(error, 'got', None) or error})",
            UserWarning,
            stacklevel=4,
        )
        without = copy.copy(program)
        without._example_inputs = None
        return without
    return program


# ----------------------------------------------------------------------------------------------------------
# The file
# ----------------------------------------------------------------------------------------------------------


class _Sink(io.RawIOBase):
    """File that torch writes to. It keeps an error for later: torch ends the process when writing fails.

    Its writer of archives finishes the archive when it is destroyed, where C++ takes no exception.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.failure: BaseException | None = None
        self._file = file

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._unless_failed(lambda: self._file.write(data), memoryview(data).nbytes)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._unless_failed(lambda: self._file.seek(offset, whence), offset)

    def _unless_failed(self, action: Any, otherwise: int) -> int:
        if self.failure is None:
            try:
                return int(action())
            except BaseException as failure:
                self.failure = failure
        return otherwise


def _write_program(program: ExportedProgram, file: BinaryIO) -> None:
    import torch

    sink = _Sink(file)
    try:
        torch.export.save(program, sink)  # type: ignore[arg-type]  # it wants IO[bytes], and takes any file
    except Exception as error:
        if sink.failure is None:
            raise ArtifactError(
                "torch cannot save this program.",
                expected="a program that torch.export.save takes",
                got=f"{type(error).__name__}: {error}",
                remedy="see the cause above",
            ) from error
    if sink.failure is not None:
        raise sink.failure
    file.flush()


def _lock(program: ExportedProgram, record: Mapping[str, Any], file: BinaryIO) -> Lock:
    """The lock of what has been written so far. Refuses to lock what load would refuse to read."""
    import torch

    with zipfile.ZipFile(file) as archive:
        entries = tuple(_entries(archive))
        root = archive.namelist()[0].partition("/")[0]

        def read(name: str) -> bytes:
            return archive.read(f"{root}/{name}")

        screening.check_entries(entry.name for entry in entries)
        screening.check_program(read(PROGRAM_ENTRY))
        payloads = {
            name: folder + held
            for folder, entry in screening.PAYLOAD_ENTRIES.items()
            for name, held in screening.check_payloads(read(entry)).items()
        }
    ledger = record.get("ledger")
    return Lock(
        torchquilt=own_version(),
        torch=str(torch.__version__),
        plugins=_plugins(record.get("backends") or ()),
        quantizer=record.get("quantizer"),
        recipe=record.get("recipe"),
        capabilities=record.get("capabilities"),
        ledger_json=None if ledger is None else json.dumps(ledger, allow_nan=False),
        quantized=quantized_tensors(program),
        tensors=stored_tensors(program, payloads),
        operators=operator_counts(program),
        entries=entries,
    )


def _entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for info in archive.infolist():
        digest = hashlib.sha256()
        with archive.open(info) as content:
            while block := content.read(1 << 20):
                digest.update(block)
        yield Entry(info.filename.partition("/")[2], info.file_size, digest.hexdigest())


def _plugins(names: Any) -> tuple[Plugin, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the environment, which is not the matter here
        installed = {backend.name: backend for backend in backends()}
    return tuple(
        Plugin(name, installed[name].distribution, installed[name].version)
        if name in installed
        else Plugin(name)
        for name in map(str, names)
    )
