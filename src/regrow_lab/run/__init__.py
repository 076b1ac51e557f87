"""One training run, from its folder to its result: data order, learning rate, checkpoints, measurements.

``resumable`` is the whole of it, ``training`` the loop. May import :mod:`regrow_lab.data`, :mod:`regrow_lab.models`,
:mod:`regrow_lab.methods` and :mod:`regrow_lab.store`; knows no study.
"""
