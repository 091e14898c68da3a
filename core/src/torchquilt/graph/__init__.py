"""Graphs: read, edit, fold and check fx graphs. Of quantization only ``qdq`` knows.

``node_values`` reads facts about a node, ``subgraphs`` finds the graphs of control flow, ``edits`` writes.
``aliasing`` and ``shared_storage`` know which tensors are the same memory, ``functionalize`` takes writes in
place out. ``batch_norm_folding``, ``constant_folding``, ``subgraph_inlining`` and ``subgraph_constants``
bring a graph into one form; ``passes`` runs such steps and ``invariants`` checks the graph after each.
``qdq`` reads and writes quantize and dequantize operators.
"""
