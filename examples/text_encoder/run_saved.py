"""Run a saved quantized model: all that this takes is torch.

    python run_saved.py MODEL INPUTS OUTPUTS THREADS

INPUTS holds a list of tuples of input tensors, OUTPUTS is written with the list of output tensors.
"""

from __future__ import annotations

import sys

import torch

# Registers the ops that quantized programs call; it is part of torch.
import torch.ao.quantization.fx._decomposed


def main(model: str, inputs: str, outputs: str, threads: str) -> None:
    """Load the program, run it on each batch, and write what it gave."""
    torch.set_num_threads(int(threads))
    run = torch.export.load(model).module()
    with torch.no_grad():
        torch.save([run(*batch) for batch in torch.load(inputs, weights_only=True)], outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
