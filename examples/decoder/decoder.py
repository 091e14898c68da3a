"""Train a small decoder, quantize it to 4 bits in two ways, lower it to ExecuTorch and let it write.

    python examples/decoder/decoder.py [--steps 400] [--sequences 122] [--tokens 40] [--json FILE]

Exit status: 0, or 1 where the program writes other tokens than the quantized model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

import torchquilt as tq
from generation import generate
from network import train
from report import Row, print_table, write_json
from text import Text, python_topics
from variants import GPTQ, NEAREST, export, inputs_of, perplexity, quantized

LEAST_SQNR = 30.0
"""dB between program and quantized model: 39.9 were measured. That both write the same is checked, too."""
PROMPT = "The for statement is used to"
STARTED = time.monotonic()


def main() -> int:
    """Run the example and give its exit status."""
    arguments = parse_arguments()
    say("read the text, and train")
    text = python_topics()
    exported = export(train(text.training, arguments.steps))
    models: dict[str, Any] = {"float": exported}
    say("quantize, rounding to the nearest; then by GPTQ")
    for name, model in quantized(exported, text.training):
        models[name] = model
        if name == GPTQ:
            print(tq.recovery.steps_of(model)[-1])
    say("measure")
    rows = measured(models, text, arguments.sequences)
    print_table(rows)
    say("lower the last one to ExecuTorch, and let both write")
    program = tq.lower(models[GPTQ], inputs_of(torch.arange(8)), verify=LEAST_SQNR)
    print(f"{program.size / 1e3:,.0f} KB. {program.verification}")
    written, is_same = write(text, models[GPTQ], program, arguments.tokens)
    print(f"\n{PROMPT}{written}\n")
    print(f"The program writes {'the same' if is_same else 'OTHER'} tokens as the quantized model.")
    if arguments.json is not None:
        write_json(arguments.json, rows, program.size, written)
    return 0 if is_same else 1


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A decoder with 4-bit weights, from training to ExecuTorch.")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--sequences", type=int, default=122, help="how many of the test set are measured")
    parser.add_argument("--tokens", type=int, default=40, help="how many are written")
    parser.add_argument("--json", type=Path, help="a file for the unrounded figures")
    return parser.parse_args()


def say(step: str) -> None:
    """Say what is done now, and how long the example has been running."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {step}", flush=True)


def measured(models: dict[str, Any], text: Text, sequences: int) -> list[Row]:
    """The figures of each model."""
    runs = {name: model.module() if name == "float" else model for name, model in models.items()}
    found = {name: perplexity(run, text.test[:sequences]) for name, run in runs.items()}
    added = {name: value - found["float"] for name, value in found.items()}
    return [
        Row(
            name,
            found[name],
            added[name],
            added[name] / added[NEAREST] if name == GPTQ else None,
            saved_size(models[name]),
        )
        for name in models
    ]


def saved_size(model: Any) -> int:
    """Size of the file that a model is saved to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        if isinstance(model, ExportedProgram):
            torch.export.save(model, path)
        else:
            tq.save(model, path, inputs_of(torch.arange(8)))
        return path.stat().st_size


def write(text: Text, model: Any, program: tq.LoweredProgram, size: int) -> tuple[str, bool]:
    """Continuation of the prompt, and whether model and program write the same."""
    prompt = text.tokenizer.encode(PROMPT).ids
    tokens = generate(model, prompt, size)
    return text.tokenizer.decode(tokens), tokens == generate(program.run, prompt, size)


if __name__ == "__main__":
    sys.exit(main())
