"""The bridge between torchquilt and quantizers written for torchao's PT2E flow.

``foreign_quantizer`` makes a quantizer of torchquilt of one of torchao's protocol, ``translation`` its
annotations; ``torchao_quantizer`` goes the other way, with the specs and observers of ``outgoing``.
``arm_npu`` lowers what Arm's quantizer quantized.
``plugin`` is what a listing says of it.

The names below are imported when they are first used: listing the installed backends imports this package,
and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names
from torchquilt.errors import PluginLoadError

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "ForeignQuantizer": "foreign_quantizer",
    "TorchaoQuantizer": "torchao_quantizer",
    "as_torchao": "torchao_quantizer",
    "ethos_u": "arm_npu",
    "foreign": "foreign_quantizer",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_torchao.arm_npu import ethos_u as ethos_u
    from torchquilt_torchao.foreign_quantizer import ForeignQuantizer as ForeignQuantizer
    from torchquilt_torchao.foreign_quantizer import foreign as foreign
    from torchquilt_torchao.torchao_quantizer import TorchaoQuantizer as TorchaoQuantizer
    from torchquilt_torchao.torchao_quantizer import as_torchao as as_torchao
else:
    _found, __dir__ = lazy_names(globals(), _MODULE_OF)

    def __getattr__(name: str) -> object:
        try:
            return _found(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "torchao":
                raise
            raise PluginLoadError(
                f"{name} needs torchao, which is not installed.",
                plugin="torchao",
                expected="the package torchao",
                got=str(error),
                remedy="pip install torchao",
            ) from error
