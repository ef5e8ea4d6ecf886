"""Random training programs: every `.grad` and every weight against float64 loops over autograd."""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.programs import Program, main, programs, run

# The warning about surgery that never happens is another test's.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(programs())
def test_programs_do_what_plain_loops_do(program: Program):
    run(program)


@pytest.mark.slow
def test_many_programs_do_what_plain_loops_do(capsys):
    number = os.environ.get("GRADSURGERY_PROGRAMS", "5000")
    status = main(["--programs", number])
    assert status == 0, capsys.readouterr().out
