"""Costs of a net before and while it trains: FLOPs, plans of nets too large to build, sparsities for a FLOP budget.

Everything is derived from what an algorithm's scores need; nothing here trains. May import :mod:`regrow.compaction` and
what lies below it, never :mod:`regrow.training`.
"""
