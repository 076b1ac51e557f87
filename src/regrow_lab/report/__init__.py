"""Tables, figures and pages, made from stored runs alone.

May import :mod:`regrow_lab.store`, :mod:`regrow_lab.methods` and :mod:`regrow_lab.config`; never imports torch, and
knows no study: what one adds to its report is a `StudyReport` that the study hands in.
"""
