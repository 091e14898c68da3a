"""Compare the quantizers of Arm in both flows; print JSON: ``[vendor, model, same, decibels]`` for each.

Runs in a process of its own, since ``tosa_serializer`` is not among what the other tests import.
"""

from __future__ import annotations

import json
import sys
import warnings

from plugins.oracle import describe, outputs_of
from plugins.torchao.flows import MinMax, by_torchao, by_torchquilt
from plugins.torchao.models import MODELS, model_of
from plugins.torchao.vendors import OF_ARM
from strategies import sqnr


def main() -> None:
    """Compare each of Arm's quantizers with each model."""
    warnings.simplefilter("ignore")
    found = []
    for vendor, make in OF_ARM.items():
        for name in MODELS:
            ours = by_torchquilt(model_of(name), make())
            theirs = by_torchao(model_of(name), MinMax(make()))
            inputs = model_of(name).inputs
            pairs = zip(outputs_of(theirs, inputs), outputs_of(ours, inputs), strict=True)
            agreement = min(sqnr(expected, other) for expected, other in pairs)
            found.append((vendor, name, describe(ours) == describe(theirs), agreement))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
