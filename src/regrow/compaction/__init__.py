"""Truly sparse layers: only alive weights exist, and kernels do work in proportion to them."""
