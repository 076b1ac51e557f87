"""Procedures around training: lottery tickets, scores before it, snapshots, lines between solutions, Small-Dense.

Each is a function around a loop of the user's own. May import :mod:`regrow.training` and all that lies below it.
"""
