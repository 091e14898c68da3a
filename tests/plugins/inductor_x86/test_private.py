"""Private API of torch that the plugin needs: it is there, and says what the plugin takes it for."""

import pytest
import torch
from torch.fx import Graph

from torchquilt_inductor_x86 import torch_private


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


def test_there_is_a_compiler() -> None:
    """The tests of this folder need one."""
    assert torch_private.check_compiler()
