"""Parts that a method is made of: scores, schedules, distributions, patterns, the top-k, and redistribution.

Public as ``regrow.scores``, ``regrow.schedules``, ``regrow.distributions`` and ``regrow.patterns``. Pure functions over
frozen records. May import :mod:`regrow.layers`, :mod:`regrow.arguments` and :mod:`regrow.engine` (its top-k in C++).
"""

from regrow.parts import distributions, patterns, redistribution, schedules, scores, topk

__all__ = ["distributions", "patterns", "redistribution", "schedules", "scores", "topk"]
