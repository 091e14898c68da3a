"""Numbers and texts of a report as JSON that can stand in a page."""

from __future__ import annotations

import json
import math
from typing import Any

#: Significant digits that a page has of what was measured.
_DIGITS = 5


def plain_number(value: float | None, digits: int = _DIGITS) -> float | str | None:
    """A number to a few digits. JSON has no infinite ones, so those are texts, and NaN is nothing."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if float(value).is_integer():
        return int(value)
    return float(f"{value:.{digits}g}")


def json_in_page(value: Any) -> str:
    """JSON that can stand in an element of a page: no text in it can end the element or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    # In JSON these stand in texts alone.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
