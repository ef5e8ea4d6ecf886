"""Training on 2 and on 4 processes against training of one process on everybody's examples.

The checks are in `worker.py`. Processes start once for each number of them and run all
checks; each check is a test here, which reads how it ended.
"""

import json
import time
from pathlib import Path

import pytest
import torch

from tests.library.distributed.worker import CHECKS, run

SECONDS = 240  # all checks take 10 on an idle machine
ONLY_FOUR = {"hybrid_sharding_is_one_process", "tensor_parallelism_under_fsdp_is_one_process"}


def checks_of(num_processes):
    return [name for name in CHECKS if num_processes == 4 or name not in ONLY_FOUR]


@pytest.fixture(scope="module", params=[2, 4], ids=lambda number: f"{number}-processes")
def outcomes(request, tmp_path_factory):
    """The folder in which the processes wrote how each check ended."""
    folder = tmp_path_factory.mktemp(f"processes{request.param}")
    torch.multiprocessing.set_forkserver_preload(["tests.library.distributed.worker"])
    context = torch.multiprocessing.start_processes(
        run,
        (request.param, str(folder), checks_of(request.param)),
        nprocs=request.param,
        join=False,
        start_method="forkserver",
    )
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and not context.join(timeout=1):
        pass
    for process in context.processes:
        if process.is_alive():
            process.kill()
            process.join()
    return request.param, folder


@pytest.mark.parametrize("name", CHECKS)
def test_processes(outcomes, name):
    num_processes, folder = outcomes
    if name not in checks_of(num_processes):
        pytest.skip("needs 4 processes")
    for process in range(num_processes):
        outcome = Path(folder) / f"{name}.{process}.json"
        assert outcome.exists(), f"process {process} did not get here within {SECONDS} s"
        ended = json.loads(outcome.read_text())
        assert ended is None, f"process {process}: {ended}"
