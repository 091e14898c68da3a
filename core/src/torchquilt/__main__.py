"""``python -m torchquilt`` is the command ``torchquilt``."""

from __future__ import annotations

import sys

from torchquilt.cli import main

sys.exit(main())
