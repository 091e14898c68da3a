"""Private API of torch that the plugin needs: it is there, and says what the plugin takes it for."""

import pytest
import torch
from torch.fx import Graph

from torchquilt_inductor_x86 import torch_private
from torchquilt_inductor_x86.generated import Generated, in_steps, numbered


def test_the_hooks_are_settings_of_inductor() -> None:
    """A pass over fused kernels can be set."""
    from torch._inductor import config

    assert hasattr(config, "_post_fusion_custom_pass")
    with torch_private.settings({"freezing": not config.freezing}):
        inside = config.freezing
    assert inside != config.freezing


def test_a_node_says_of_which_node_of_the_program_it_was_made() -> None:
    """``ExportedProgram.module()`` notes it."""
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),))
    names = [torch_private.source_name(node) for node in exported.module().graph.nodes]
    assert "linear" in names


def test_a_node_of_another_graph_comes_from_nowhere() -> None:
    """Nothing is noted at a node that was made by hand."""
    assert torch_private.source_name(Graph().placeholder("x")) == ""


def test_an_error_names_the_node_that_was_run() -> None:
    """The interpreter's frames have it."""
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.randn(1, 2),))
    interpreter = torch.fx.Interpreter(exported.module(check_guards=False))
    with pytest.raises(RuntimeError) as caught:
        interpreter.run(torch.randn(1, 3))
    assert torch_private.blamed(caught.value) == "linear"


CODE = """
    {
    KernelContextGuard _ctx("cpp_fused_relu_0", R"(
File "model.py", line 1, in forward
)");
    cpp_fused_relu_0((const float*)(x.data_ptr()), (uint8_t*)(buf0.data_ptr()), (float*)(buf2.data_ptr()));
    }
    {
    KernelContextGuard _ctx("aoti_torch_cpu__qlinear_pointwise_tensor", R"()");
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu__qlinear_pointwise_tensor(buf0, x_scale, &buf1_handle));
    }
    {
    KernelContextGuard _ctx("aoti_torch_cpu_mm_out", R"()");
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(buf3, buf1, weight));
    }
"""


def test_a_call_in_generated_code_says_what_it_writes() -> None:
    """Loops are given memory, kernels make tensors, or write to the first argument."""
    assert [*torch_private.calls_in(CODE)] == [
        ("cpp_fused_relu_0", ("buf0", "buf2")),
        ("aoti_torch_cpu__qlinear_pointwise_tensor", ("buf1",)),
        ("aoti_torch_cpu_mm_out", ("buf3",)),
    ]


def test_a_call_that_comes_again_is_another_step() -> None:
    """A profile tells kernels of one name in their order."""
    assert [*numbered(["a", "b", "a"])] == ["a", "b", "a 2"]


def test_several_loops_of_one_call_are_one_step() -> None:
    """Scheduled operations are joined with the calls by the buffers that are written."""
    loop = Generated("op0", "cpp_fused", "", frozenset(), (), "", frozenset({"buf0"}))
    kernel = Generated("op1", "onednn.qlinear_pointwise.tensor", "", frozenset(), (), "", frozenset({"buf1"}))
    other = Generated("op2", "cpp_fused", "", frozenset(), (), "", frozenset({"buf2"}))
    unseen = Generated("op9", "cpp_fused", "", frozenset(), (), "", frozenset({"buf9"}))
    made = in_steps([loop, kernel, other, unseen], torch_private.calls_in(CODE))
    assert [one.step for one in made] == [
        "cpp_fused_relu_0",
        "aoti_torch_cpu__qlinear_pointwise_tensor",
        "cpp_fused_relu_0",
        "op9",
    ]


def test_there_is_a_compiler() -> None:
    """The tests of this folder need one."""
    assert torch_private.check_compiler()
