"""Settings shared by all tests, and the record of which ISAs' kernels ran.

Hypothesis draws the same examples every time, and torch keeps to two threads. SUBBYTE_REQUIRE_ISAS names ISAs whose
kernels have to run wherever the CPU has them: the run fails if they did not, and says which the CPU lacks.
"""

import os

import pytest
import torch
from hypothesis import settings

import kernel_table
from subbyte.backends import _cpu_call

settings.register_profile("subbyte", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("subbyte")
torch.set_num_threads(2)

_required = os.environ.get("SUBBYTE_REQUIRE_ISAS", "").split()
_kernels: set[str] = set()


def pytest_runtest_teardown():
    _kernels.update(_cpu_call.ran.values())


@pytest.fixture
def one_thread():
    """torch, and with it the kernels, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _missing(config: pytest.Config) -> tuple[list[str], list[str]]:
    """(required ISAs that did not run though this CPU has them, those that it lacks). A runner has to have them all."""
    ran = kernel_table.isas_of(_kernels)
    here = _required if config.getoption("runner", None) else kernel_table.isas_of_cpu()
    silent = [isa for isa in _required if isa not in ran]
    return [isa for isa in silent if isa in here], [isa for isa in silent if isa not in here]


def pytest_sessionfinish(session: pytest.Session):
    if _required and _missing(session.config)[0]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config):
    if not _required:
        return
    failed, absent = _missing(config)
    terminalreporter.write_line(f"ISAs that ran: {' '.join(kernel_table.isas_of(_kernels)) or 'none'}")
    if absent:
        terminalreporter.write_line(f"not on this CPU, so not tested here: {' '.join(absent)}")
    if failed:
        terminalreporter.write_line(f"FAILED: this CPU has {' '.join(failed)}, and none of its kernels ran", red=True)
