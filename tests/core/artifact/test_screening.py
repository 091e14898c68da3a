"""Files that attack: nothing in a file is executed, and what real programs hold passes."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx import GraphModule

import torchquilt as tq
from artifacts import PROGRAM, Bomb, X, forge, in_program, pickled
from strategies import (
    Nothing,
    export,
    normal,
)
from torchquilt._internal import torch_private
from torchquilt.artifact import known_schemas, load_program, screening

# ----------------------------------------------------------------------------------------------------------
# Files that attack
# ----------------------------------------------------------------------------------------------------------


class Target(nn.Module):
    """The model that is attacked: it has sizes, an input that is a dict, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Something that depends on a size."""
        return self.fc(batch["x"]) * batch["x"].shape[0]


BATCH = {"x": normal(3, 4)}


def code_for(mark: Path) -> str:
    """An expression that makes a file."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


def bare_code_for(mark: Path) -> str:
    """The same without a quote and without a dot, where names are cut up or quoted."""
    return f"exec(bytes({list(code_for(mark).encode())}))"


def everywhere(program: Any, key: str, value: object) -> None:
    """Give each field of a name a value."""
    if isinstance(program, dict):
        if key in program:
            program[key] = value
        for item in program.values():
            everywhere(item, key, value)
    elif isinstance(program, list):
        for item in program:
            everywhere(item, key, value)


def signature_of(program: dict[str, Any]) -> dict[str, Any]:
    """Signature of the call of the whole model."""
    found: dict[str, Any] = program["graph_module"]["module_call_graph"][0]["signature"]
    return found


def _sample_inputs(entries: dict[str, bytes], mark: Path) -> None:
    entries["data/sample_inputs/model.pt"] = pickled(Bomb(mark))


def _pickled_weight(entries: dict[str, bytes], mark: Path) -> None:
    config = json.loads(entries["data/weights/model_weights_config.json"])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    entries["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    entries[f"data/weights/{first['path_name']}"] = pickled(Bomb(mark))


def _old_weights(entries: dict[str, bytes], mark: Path) -> None:
    entries["data/weights/model.pt"] = pickled(Bomb(mark))


def _old_constants(entries: dict[str, bytes], mark: Path) -> None:
    entries["data/constants/model.pt"] = pickled(Bomb(mark))


def _constant(entries: dict[str, bytes], name: str, content: bytes) -> None:
    row = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    entries["data/constants/model_constants_config.json"] = json.dumps({"config": {"k": row}}).encode()
    entries[f"data/constants/{name}"] = content


def _pickled_constant(entries: dict[str, bytes], mark: Path) -> None:
    _constant(entries, "tensor_0", pickled(Bomb(mark)))


def _opaque_constant(entries: dict[str, bytes], mark: Path) -> None:
    _constant(entries, "opaque_obj_0", pickle.dumps(Bomb(mark)))


def _symbolic_size(entries: dict[str, bytes], mark: Path) -> None:
    in_program(lambda program: everywhere(program, "expr_str", code_for(mark)))(entries)


def _symbolic_size_in_a_text(entries: dict[str, bytes], mark: Path) -> None:
    text = f"Max(Integer(1), {code_for(mark)!r})"
    in_program(lambda program: everywhere(program, "expr_str", text))(entries)


def _guard(entries: dict[str, bytes], mark: Path) -> None:
    in_program(lambda program: program["guards_code"].append(f"{code_for(mark)} is None"))(entries)


def _name_of_an_input(entries: dict[str, bytes], mark: Path) -> None:
    old, new = json.dumps("batch_x").encode(), json.dumps(f"x={code_for(mark)}").encode()
    entries[PROGRAM] = entries[PROGRAM].replace(old, new)


def _name_of_a_tensor(entries: dict[str, bytes], mark: Path) -> None:
    new = json.dumps(f'fc.we"+str({bare_code_for(mark)})+"ight').encode()
    for name in (PROGRAM, "data/weights/model_weights_config.json"):
        entries[name] = entries[name].replace(b'"fc.weight"', new)


def _key_of_an_input(entries: dict[str, bytes], mark: Path) -> None:
    key = f'x"+str({bare_code_for(mark)})+"'
    entries["data/sample_inputs/model.pt"] = pickled((({key: BATCH["x"]},), {}))

    def change(program: dict[str, Any]) -> None:
        signature = signature_of(program)
        signature["in_spec"] = signature["in_spec"].replace(
            json.dumps('["x"]'), json.dumps(json.dumps([key]))
        )

    in_program(change)(entries)


def _default_factory(entries: dict[str, bytes], mark: Path) -> None:
    context = {
        "default_factory_module": mark.with_suffix("").name,
        "default_factory_name": "x",
        "dict_context": ["a"],
    }
    _structure_of_the_output(entries, "collections.defaultdict", context)


def _enum_key(entries: dict[str, bytes], mark: Path) -> None:
    context = json.dumps([{"__enum__": True, "fqn": f"{mark.with_suffix('').name}:x", "name": "a"}])
    _structure_of_the_output(entries, "builtins.dict", context)


def _structure_of_the_output(entries: dict[str, bytes], kind: str, context: object) -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}])
    in_program(lambda program: signature_of(program).update(out_spec=spec))(entries)


ATTACKS = [
    _sample_inputs,
    _pickled_weight,
    _old_weights,
    _old_constants,
    _pickled_constant,
    _opaque_constant,
    _symbolic_size,
    _symbolic_size_in_a_text,
    _guard,
    _name_of_an_input,
    _name_of_a_tensor,
    _key_of_an_input,
    _default_factory,
    _enum_key,
]


@pytest.fixture(scope="module")
def target() -> GraphModule:
    """The model that is attacked."""
    dynamic = {"batch": {"x": {0: Dim("rows", max=9)}}}
    return tq.convert_pt2e(tq.prepare_pt2e(export(Target(), BATCH, dynamic_shapes=dynamic), Nothing()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_is_executed(
    attack: Callable[[dict[str, bytes], Path], None],
    target: GraphModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's own loader runs the code that is hidden there; ours refuses the file, and nothing has run."""
    mark = tmp_path / "intruder.ran"
    (tmp_path / "intruder.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "intruder", raising=False)
    tq.save(target, tmp_path / "model.pt2", (BATCH,))
    forged = forge(tmp_path / "model.pt2", lambda entries: attack(entries, mark))

    for reader in (tq.load, load_program):
        with pytest.raises(tq.ArtifactError) as caught:
            reader(forged)
        assert not mark.exists()
        assert "could run code" in str(caught.value)
        assert caught.value.path == str(forged)

    with contextlib.suppress(Exception):  # the attack is a real one, whatever becomes of the model
        program = torch.export.load(forged)
        args, kwargs = program.example_inputs or ((BATCH,), {})
        program.module()(*args, **kwargs)
    assert mark.exists()


@pytest.mark.parametrize("name", ["x=1", "*x", "x, y", "x):\n  pass", "x: int"])
def test_a_parameter_is_an_identifier(name: str) -> None:
    """The names of inputs become parameters of a function that torch writes as text."""
    keyword = {"type": "builtins.dict", "context": json.dumps([name]), "children_spec": []}
    spec = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [keyword, keyword]}])
    for field, value in (("in_spec", spec), ("forward_arg_names", [name])):
        with pytest.raises(tq.ArtifactError, match="There is a "):
            screening.check_program(json.dumps({"signature": {field: value}}).encode())


@pytest.mark.parametrize(
    "target_",
    [
        "torch.os.system",
        "_operator.methodcaller",
        "math.__loader__",
        "torch.ops.load_library",
        "torch.hub.load",
        "#a:b",
    ],
)
def test_a_node_calls_an_operator_or_arithmetic(saved: Path, target_: str) -> None:
    """Torch would find any function that can be reached from it, Python or math."""

    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][-1]["target"] = target_

    with pytest.raises(tq.ArtifactError, match="a function") as caught:
        tq.load(forge(saved, in_program(change)))
    assert target_ in str(caught.value.got)


@pytest.mark.parametrize(
    "entry", ["data/aotinductor/model/model.so", "data/constants/custom_obj_0", "extra/evil"]
)
def test_an_entry_that_no_program_needs_is_refused(saved: Path, entry: str) -> None:
    """A shared library, an object, an unknown file."""
    with pytest.raises(tq.ArtifactError, match="an entry") as caught:
        tq.load(forge(saved, lambda entries: entries.update({entry: b"x"})))
    assert caught.value.got == entry


@pytest.mark.parametrize(
    "guard",
    [
        "(lambda: 1)()",
        "[1 for x in L]",
        "L['x'].__class__ is None",
        "L['x'].tofile(1)",
        "torch.load('x')",
        "torch.hub.load('x')",
        "f'{L}'",
        "(x := 1)",
        "1 +",
    ],
)
def test_a_guard_is_a_comparison_and_nothing_else(guard: str) -> None:
    """Calls of anything but sizes and arithmetic are refused, as is what is no expression."""
    with pytest.raises(tq.ArtifactError, match="an expression"):
        screening.check_program(json.dumps({"guards_code": [guard]}).encode())


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] <= 32",
        "L['batch']['x'][0].size()[1] == 2*L['y'].size()[0]",
        "math.isnan(L['x'])",
        "max(1, L['n']) // 2 % 8 == 0",
        "L['mode'] == 'fast'",
        "L['cache'].keys[0].stride()[1] != 4",
        "not (L['x'].size()[0] > 3 and -L['n'] < 2)",
    ],
)
def test_guards_that_torch_writes_pass(guard: str) -> None:
    """Sizes, numbers and texts of inputs, compared."""
    screening.check_program(json.dumps({"guards_code": [guard]}).encode())


@pytest.mark.parametrize("depth", [100, 400, 700, 5000, 100_000])
def test_a_program_that_is_nested_too_deep_is_refused(depth: int) -> None:
    """The error is ours, however deep it is."""
    text = b'{"nodes": ' + b"[" * depth + b'"x"' + b"]" * depth + b"}"
    with pytest.raises(tq.ArtifactError):
        screening.check_program(text)


@pytest.mark.parametrize("name", ["tensor_values", "as_string_to_argument", "range_constraints"])
def test_a_key_that_is_a_name_hides_nothing(name: str) -> None:
    """A key that is called "metadata" or "arg" is looked at as any other."""
    for hidden in ("metadata", "arg", "as_string"):
        program = {name: {hidden: {"expr_str": "__import__(1)", "as_operator": "torch.os.system"}}}
        with pytest.raises(tq.ArtifactError, match="an expression"):
            screening.check_program(json.dumps(program).encode())


def test_a_text_in_the_place_of_a_number_is_refused() -> None:
    """Torch does not look at the types of what it reads."""
    for field in ("as_int", "hint", "min_val"):
        with pytest.raises(tq.ArtifactError, match="a text"):
            screening.check_program(json.dumps({"graph": {field: "exec(1)"}}).encode())


def _of_the_future(mark: Path) -> Callable[[dict[str, Any]], None]:
    """A change of a program that gives each object of it a field that no torch of today reads."""

    def add(value: Any, is_object: bool) -> None:
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            add(item, True)
        # Of a union torch takes the only key.
        if isinstance(value, dict) and is_object and len(value) > 1 and "name" in value:
            value["future"] = {"expr_str": code_for(mark), "target": [code_for(mark)], "n": 1}

    def change(program: dict[str, Any]) -> None:
        add(program, False)
        program["future"] = code_for(mark)
        program["schema_version"]["minor"] += 5

    return change


def test_a_newer_torch_may_add_fields(saved: Path, tmp_path: Path) -> None:
    """The installed torch does not read them: the file loads, computes the same, and nothing is executed."""
    mark = tmp_path / "executed"
    forged = forge(saved, in_program(_of_the_future(mark)))
    assert "future" in forged.read_bytes().decode("latin-1")
    loaded = tq.load(forged).module()
    assert torch.equal(loaded(X), tq.load(saved).module()(X))
    assert not mark.exists()


def test_a_field_that_torch_reads_and_we_do_not_know_is_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says which schemas are known, and which torch is installed."""
    known = torch_private.schema_fields()
    monkeypatch.setattr(torch_private, "schema_fields", lambda: known | {"future"})
    with pytest.raises(tq.ArtifactError, match="not known here") as caught:
        tq.load(forge(saved, in_program(_of_the_future(tmp_path / "executed"))))
    assert "8.20 (torch 2.13 and 2.14)" in str(caught.value.expected)
    assert torch.__version__ in str(caught.value.got)


def test_a_program_of_another_schema_is_refused_with_the_versions(saved: Path) -> None:
    """A new major version may mean anything by its fields."""

    def change(program: dict[str, Any]) -> None:
        program["schema_version"] = {"major": 9, "minor": 1}

    with pytest.raises(tq.ArtifactError, match="a schema that is not known") as caught:
        tq.load(forge(saved, in_program(change)))
    assert caught.value.got == "schema 9.1"
    assert "8.20 (torch 2.13 and 2.14)" in str(caught.value.expected)


@pytest.mark.parametrize(
    "program",
    [
        {"as_custom_obj": {"name": "a", "class_fqn": "b"}},
        {"custom_obj_values": {"a": {}}},
        {"nodes": [{"target": "_operator.add", "metadata": {"stack_trace": 1}}]},
        {"as_float": "exec(1)"},
        {"fqn": "a'b"},
        {"buffer_name": "a\nb"},
        {"parameter_name": "a\\"},
        {"a'b": 1},
        {"in_spec": "nonsense"},
        {"out_spec": "[1, {}]"},
        {"out_spec": '[1, {"type": null, "context": "{", "children_spec": []}]'},
    ],
    ids=str,
)
def test_what_is_neither_a_name_nor_arithmetic_is_refused(program: dict[str, Any]) -> None:
    """Objects, notes that are more than texts, quotes and line breaks in names, broken structures."""
    with pytest.raises(tq.ArtifactError, match="could run code"):
        screening.check_program(json.dumps(program).encode())


@pytest.mark.parametrize("kind", ["list", "open"])
def test_a_default_factory_is_a_plain_type(kind: str) -> None:
    """A defaultdict of lists passes; any other function that could be called for a missing key does not."""
    context = {"default_factory_module": "builtins", "default_factory_name": kind, "dict_context": ["a"]}
    leaf = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    program = json.dumps({"out_spec": json.dumps([1, tree])}).encode()
    if kind == "list":
        screening.check_program(program)
    else:
        with pytest.raises(tq.ArtifactError, match="a default factory"):
            screening.check_program(program)


@pytest.mark.parametrize(
    "text",
    [
        b"not json",
        b"[]",
        b'{"config": []}',
        b'{"config": {"a": 1}}',
        b'{"config": {"a": {"path_name": "weight_0"}}}',
        b'{"config": {"a": {"path_name": "../weight_0", "use_pickle": false}}}',
        b'{"config": {"a\'b": {"path_name": "weight_0", "use_pickle": false}}}',
    ],
    ids=str,
)
def test_a_list_of_tensors_leads_to_plain_bytes_in_the_archive(text: bytes) -> None:
    """Every other form is refused."""
    with pytest.raises(tq.ArtifactError, match="could run code"):
        screening.check_payloads(text)


def test_the_screening_knows_every_text_of_torchs_schema() -> None:
    """A new torch that writes new texts, or new tables by name, fails here and not at a user's."""
    from torch._export.serde import schema

    texts, tables, fields = set(), set(), set()
    seen: set[type] = set()

    def visit(kind: type) -> None:
        if kind in seen:
            return
        seen.add(kind)
        for field, hint in typing.get_type_hints(kind, globalns=vars(schema)).items():
            parts = list(_parts(hint))
            fields.update({field} - {"_type"})  # which of a union it is, and not in the file
            if any(typing.get_origin(part) is dict for part in parts):
                tables.add(field)
            elif str in parts:
                texts.add(field)
            for part in parts:
                if isinstance(part, type) and part.__module__ == schema.__name__:
                    visit(part)

    visit(schema.ExportedProgram)
    visit(schema.PayloadConfig)
    assert tables - {"metadata"} == screening.NAMED
    assert fields <= torch_private.schema_fields()
    assert fields <= known_schemas.FIELDS
    assert schema.SCHEMA_VERSION in known_schemas.VERSIONS
    assert texts <= set(screening._RULES) | screening._REFUSED
    assert {"expr_str", "guards_code", "target"} <= texts


def _parts(hint: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [hint, *(part for argument in typing.get_args(hint) for part in _parts(argument))]
