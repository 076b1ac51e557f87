"""Which of two ways to compute a layer or a region is faster on this machine: measured once, and kept.

``side_by_side`` times, ``timing_cache`` keeps, the others say what is timed. May import the rest of
:mod:`regrow.compaction` and :mod:`regrow.engine`.
"""
