"""Quantize a real text encoder with two plugins at once, and print what that costs and what it gives.

    python examples/text_encoder/demo.py [--model-dir DIR] [--text FILE] [--output DIR] [--json FILE]
                                         [--targets all | NAME ...]

Without options: all-MiniLM-L6-v2, calibrated on news documents, and judged by how well its similarities agree
with those that people gave to the pairs of 50 other documents (Lee, Pincombe and Welsh, 2005).

Exit status: 0 if all checks pass, 1 if one fails, 2 if the demo cannot start with what it was given.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from inputs import (
    DATA_PACKAGE,
    MODEL_PACKAGE,
    BadInput,
    lee_background,
    lee_documents,
    packaged_model,
    read_model_folder,
    read_text_file,
    require_packages,
)

NEEDED = (
    "torch",
    "transformers",
    "rich",
    DATA_PACKAGE,
    "torchquilt",
    "torchquilt_xnnpack",
    "torchquilt_executorch_embedding",
    "torchquilt_executorch",
    "executorch",
)
# Read when transformers is imported. That texts are cut and weights loaded is said by the demo itself.
TRANSFORMERS_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> int:
    """Run the demo and give its exit status."""
    arguments = parse_arguments()
    try:
        return 0 if run(arguments) else 1
    except BadInput as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2


def parse_arguments() -> argparse.Namespace:
    """The command line; argparse itself ends with status 2 if it does not understand it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model-dir",
        type=Path,
        metavar="DIR",
        help="a sentence-transformers folder (transformer, mean pooling) instead of all-MiniLM-L6-v2",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="your own sentences to compare on, UTF-8, one a line, instead of the rated documents",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the saved models in this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    parser.add_argument(
        "--targets",
        nargs="+",
        default=(),
        metavar="NAME",
        help="run the model on these installed runtimes, too, side by side; 'all' means each of them",
    )
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> bool:
    """Look at everything that was given, then quantize; says whether all checks passed."""
    require_packages(NEEDED if arguments.model_dir else (*NEEDED, MODEL_PACKAGE))
    folder = read_model_folder(arguments.model_dir or packaged_model())
    # With the user's own sentences too, calibration stays on these: all of theirs are left to compare on,
    # and none is judged by what was tuned on it.
    calibration = lee_background()
    evaluation = read_text_file(arguments.text) if arguments.text else lee_documents()
    if arguments.json and not arguments.json.parent.is_dir():
        raise BadInput(f"the folder {arguments.json.parent} for --json does not exist")

    os.environ.update(TRANSFORMERS_SETTINGS)
    # Imported only now: it needs torch, and a missing package or bad input is to be answered before that.
    import experiment

    with output_folder(arguments.output) as output:
        return experiment.run(
            experiment.Task(
                folder,
                calibration,
                evaluation,
                output=Path(output),
                figures=arguments.json,
                keeps_output=arguments.output is not None,
                targets=tuple(arguments.targets),
            )
        )


def output_folder(wanted: Path | None) -> AbstractContextManager[str]:
    """The folder that the user wants, made if need be, or a temporary one."""
    if wanted is None:
        return tempfile.TemporaryDirectory(prefix="torchquilt-demo-")
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the output folder {wanted} cannot be made: {error.strerror}") from None
    return nullcontext(str(wanted))


if __name__ == "__main__":
    sys.exit(main())
