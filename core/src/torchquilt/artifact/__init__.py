"""Artifacts: save a quantized model in one file, with a lock of what made it, and load it with every check.

The file is what ``torch.export.save`` writes, so ``torch.export.load`` reads it too. The lock is one more
entry in it: who quantized with what, the parameters of each quantized tensor, and digests of everything.

``lock`` has the lock and the difference of two, ``archive`` reads it out of a file; neither needs torch.
``program`` reads the same facts off an ExportedProgram, ``reexport`` makes one of a converted model,
``reproducible`` removes traces of the process, ``screening`` refuses files that could run code when torch
reads them; ``saving`` and ``loading`` put these together. Importing this package does not import torch.
"""

from torchquilt.artifact.archive import read_lock
from torchquilt.artifact.loading import Artifact, load, load_program
from torchquilt.artifact.lock import Change, Lock, LockDiff, diff
from torchquilt.artifact.saving import save

__all__ = ["Artifact", "Change", "Lock", "LockDiff", "diff", "load", "load_program", "read_lock", "save"]
