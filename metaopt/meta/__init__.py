"""The inner loop, windows and meta-gradients, the outer loop, and a run in its folder.

Start reading in ``unroll``.
"""
