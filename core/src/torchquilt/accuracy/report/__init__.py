"""The report of a quantized model: one page that needs no network, to be looked at in a browser.

``subject`` reads a quantized model, ``measurements`` what :func:`torchquilt.report` is given besides. Of
these, ``graph_drawing`` and ``placement`` make the graph, ``ranges`` and ``histograms`` the ranges of
tensors, ``module_tree`` and ``overview`` the sums, ``tables`` the tables. ``contents`` puts them together as
plain data, ``rendering`` makes the page of it with the files below ``page/``, and ``document`` is what users
get. ``plain`` has numbers and texts as JSON that can stand in a page.
``model_explorer`` writes node data for Google's Model Explorer.
"""

from torchquilt.accuracy.report.document import Report, report

__all__ = ["Report", "report"]
