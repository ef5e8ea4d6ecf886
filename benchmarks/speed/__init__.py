"""The cost of surgery beside its peers: whole steps, kernels, memory, the trainer, and asv's suite.

``python -m benchmarks.speed --help`` lists the commands.
"""

import sys
from pathlib import Path

if __name__ == "speed":
    # asv imports this folder by that name, beside the installed version of the library that it is
    # to measure. The benchmark is found in the repository, which therefore comes last in the path.
    sys.path.append(str(Path(__file__).parents[2]))
