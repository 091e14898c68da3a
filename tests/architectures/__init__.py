"""Architectures of ``transformers``, tiny and random: how each is made, and what it is shown.

Each module beside this one is a table of architectures of one kind. The configurations are made here, so that
nothing is read from a hub. What differs between the architectures is chosen on purpose: attention masks with
padding on either side, none, or a causal one that a model makes for itself; keyword inputs; sizes that stay
dynamic; strict and non-strict export; caches that the model writes to; tied and shared weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import attrs
import torch
import transformers
from torch import nn

transformers.logging.set_verbosity_error()

Inputs: TypeAlias = dict[str, Any]

#: Signal to noise in dB that every output of a quantized model has at least, if its table says nothing else.
#: Eight bits over the range of normal numbers give about 40 dB. Static quantization does that to some dozens
#: of tensors, whose noise adds up (ten of them leave 30 dB), and a width of 32 averages little of it out.
#: Dynamic quantization leaves what is between the linears alone. What was measured lies between 22 and 38 dB,
#: and between 30 and 60 dB. Where a table has lower bounds it says what in the architecture amplifies noise.
STATIC_BOUND = 22.0
DYNAMIC_BOUND = 30.0


@attrs.frozen
class Architecture:
    """One row of a table.

    Args:
        name: of the architecture, and of what is special about this row.
        make: makes the model, with random weights.
        inputs: seed → keyword inputs.
        static: signal to noise in dB that static quantization keeps at least.
        dynamic: the same for dynamic quantization.
        strict: how it is exported.
        free: name of an input → its dimensions that are dynamic. They have a size of 2 or more in the inputs,
            and one row and one column less in :meth:`smaller`.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    static: float = STATIC_BOUND
    dynamic: float = DYNAMIC_BOUND
    strict: bool = False
    free: dict[str, tuple[int, ...]] = attrs.field(factory=dict)

    def __str__(self) -> str:
        return self.name

    def bound(self, *, is_dynamic: bool) -> float:
        """The bound for one of the two ways to quantize."""
        return self.dynamic if is_dynamic else self.static

    def model(self) -> nn.Module:
        """The model in evaluation mode, the same in every process."""
        torch.manual_seed(0)
        return settled(self.make()).eval()

    def dynamic_shapes(self) -> dict[str, Any] | None:
        """As ``torch.export.export`` takes it."""
        if not self.free:
            return None
        automatic = torch.export.Dim.AUTO
        return {name: dict.fromkeys(self.free.get(name, ()), automatic) or None for name in self.inputs(0)}

    def smaller(self, inputs: Inputs) -> Inputs:
        """The inputs with one index less in every dimension that is dynamic."""
        cut = dict(inputs)
        for name, dimensions in self.free.items():
            for dimension in dimensions:
                cut[name] = cut[name].narrow(dimension, 0, cut[name].shape[dimension] - 1)
        return cut


def settled(model: nn.Module) -> nn.Module:
    """The model with weights that keep the size of what goes through it.

    ``transformers`` draws most weights with a standard deviation of 0.02, which fits widths of several
    hundred. At a width of 32 each layer would make its input ten times smaller, and the noise of quantization
    would be measured against next to nothing. Those are drawn anew, with a variance of 1 / fan in (2 / fan in
    for convolutions, behind which mostly stands a ReLU: He et al., arXiv:1502.01852). What is not a
    weight of a layer (embeddings, class tokens, biases of positions) is drawn with a variance of 1.
    """
    with torch.no_grad():
        for module in model.modules():
            if torch.nn.utils.parametrize.is_parametrized(module):
                continue
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.reset_parameters()  # some are drawn like a weight
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1 and float(parameter.square().mean().sqrt()) < 0.05:
                    parameter.normal_(0, _fan_in(module, parameter) ** -0.5)
    return model


def _fan_in(module: nn.Module, parameter: nn.Parameter) -> float:
    if isinstance(module, nn.modules.conv._ConvNd):
        return parameter[0].numel() / 2
    if isinstance(module, nn.Linear) or (parameter.dim() == 3 and parameter.shape[0] > 1):  # experts
        return parameter.shape[-1]
    if isinstance(module, transformers.pytorch_utils.Conv1D):
        return parameter.shape[0]
    return 1


# ----------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------

#: What most models of text call their sizes.
TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
#: What most vision transformers do: 16 patches of an image of 32 by 32.
PATCHES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
#: What encoder-decoders in the manner of BART do.
PAIR = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "use_cache": False,
}


def made(
    kind: str, head: Any = transformers.AutoModel, attention: str = "", **sizes: Any
) -> Callable[[], Any]:
    """Maker of a model of a kind of configuration.

    Args:
        kind: the ``model_type`` of the configuration.
        head: the automatic class that says what the model is for.
        attention: ``"eager"`` for attention in single steps; by default it is one operator in most models.
        sizes: of the configuration.
    """

    def make() -> Any:
        config = transformers.AutoConfig.for_model(kind, **sizes)
        return head.from_config(config, **({"attn_implementation": attention} if attention else {}))

    return make


# ----------------------------------------------------------------------------------------------------------
# Inputs
# ----------------------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    """Random numbers that are the same for the same seed."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator(seed))


def ids(rows: int, length: int, seed: int, below: int = 90) -> torch.Tensor:
    """Token numbers, none of which is a special one."""
    return torch.randint(3, below, (rows, length), generator=generator(seed))


def mask(rows: int, length: int, padding: int = 4, left: bool = False) -> torch.Tensor:
    """An attention mask whose last row is padded, on the right or on the left."""
    found = torch.ones(rows, length, dtype=torch.int64)
    found[-1, slice(padding) if left else slice(length - padding, length)] = 0
    return found


def padded(rows: int = 2, length: int = 12, left: bool = False) -> Callable[[int], Inputs]:
    """Sentences of which the last one is shorter."""
    return lambda seed: {
        "input_ids": ids(rows, length, seed),
        "attention_mask": mask(rows, length, left=left),
    }


def unmasked(rows: int = 2, length: int = 12) -> Callable[[int], Inputs]:
    """Sentences of one length, without a mask."""
    return lambda seed: {"input_ids": ids(rows, length, seed)}


def sentence_pair(seed: int) -> Inputs:
    """Padded sentences, and what is to be said of them."""
    return {**padded()(seed), "decoder_input_ids": ids(2, 8, seed + 1000)}


def image(size: int = 32, rows: int = 2, channels: int = 3) -> Callable[[int], Inputs]:
    """Images."""
    return lambda seed: {"pixel_values": normal(rows, channels, size, size, seed=seed)}


def captioned(seed: int) -> Inputs:
    """Padded sentences with an image each."""
    return {**padded()(seed), **image()(seed)}
