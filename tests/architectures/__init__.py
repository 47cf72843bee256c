"""Small random models of the architectures that people use, and what must be found in each.

``base`` says what an architecture is, ``bars`` holds each symmetry to what makes it one, ``table``
has all architectures and writes the table of ``docs/guide/architectures.md``.
"""
