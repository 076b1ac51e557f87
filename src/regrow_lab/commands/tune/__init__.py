"""``regrow tune``: searches over Optuna's ask and tell, and their report.

``trials`` is one search, ``optuna_storage`` where its trials lie, ``search_report`` is made from the stored runs alone.
May import every room of the lab.
"""
