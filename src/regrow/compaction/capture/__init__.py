"""From a module's forward to the regions that the engine runs: traced, judged, cut.

``tracing`` records the forward, ``graph_operations`` says which nodes a program can express, ``region_cutting`` makes
the regions as large as they get, ``graph_forward`` runs them in the forward's place. May import
:mod:`regrow.compaction` and :mod:`regrow.engine`.
"""
