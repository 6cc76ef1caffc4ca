"""Measuring: every op (`suite`, `harness`), a whole model (`model`), and what lines of two runs say
about each other (`compare`).

``gpt-oss-native bench`` and the programs in benchmarks/ are thin over it.
"""
