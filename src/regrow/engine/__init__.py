"""The compiled engine: a program fused, lowered to a native plan, and run in C++ (``csrc``).

``program`` is what is computed, ``fusion`` and ``lowering`` turn it into steps, ``compiled_program`` owns the memory
and runs it. Never imports ``torch.nn``, nor any other room of the library.
"""
