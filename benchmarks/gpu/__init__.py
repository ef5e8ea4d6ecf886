"""Everything that only a GPU can answer, in one command.

``python -m benchmarks.gpu.pack`` packs what the command needs, and ``python -m benchmarks.gpu``
does its jobs on the machine with the GPU, the most important first, until its time is over.
"""
