"""Compact storage: only the alive entries of a weight exist, and kernels do work in proportion to them.

``policy`` decides which layers go compact, ``capture`` finds the regions of a model that run as one, ``convert`` and
``file_format`` are for trained nets. May import :mod:`regrow.engine` and :mod:`regrow.storage`, never
:mod:`regrow.training`.
"""
