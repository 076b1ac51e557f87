"""Tuning of (alpha, dT) with Optuna's TPE, and grids run through the same machinery.

The runs are ordinary ones in an ordinary folder; the tables and figures come from them alone. What Optuna stores (a
journal in the folder, or a PostgreSQL database) is which trials there are and who works on them.
"""
