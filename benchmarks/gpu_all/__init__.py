"""Everything that a GPU can tell, in one command of under nine minutes; see `command.py`.

Modules here import torch, triton, numpy and `kernels/` only, so that they run in the image of a
machine with a GPU; what needs more says so in its own part.
"""
