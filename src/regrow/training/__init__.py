"""From ``regrow.attach`` to the last step: the hooks, the groups of layers, and the state in a checkpoint.

:mod:`regrow.training.sparsifier` is the one stateful room of the library. May import everything but
:mod:`regrow.procedures` and :mod:`regrow.channel_removal`.
"""
