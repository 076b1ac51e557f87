"""The command line: ``regrow train``, ``study``, ``tune``, ``flops``, ``report`` and ``data``, a file each.

A command parses, calls the other rooms and prints. Nothing else in the lab imports from here.
"""
