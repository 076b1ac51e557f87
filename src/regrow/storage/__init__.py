"""How one sparsified weight is kept: the protocol, the masked weight, and what torch's optimizers and ranks ask of it.

The other way to keep one, where only alive entries exist, is :mod:`regrow.compaction`. May import :mod:`regrow.parts`
and :mod:`regrow.layers`; knows no algorithm.
"""
