"""kill -9 right before every system call that changes anything: nothing is lost.

For each scenario, one run says which calls there are; then, for each call, a
run is killed right before it, the oracle is asked, the program is run again
without faults, and the oracle is asked again. In the long campaign the second
run is killed as well.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from tests.faults import scenarios, tracing
from tests.faults.programs import Programs
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.telling import rehearsed, telling
from tests.faults.tracing import Call

pytestmark = tracing.needs_strace

#: Of every so many points one is tried in the ordinary run of the tests.
STEP = 4


LONG = [pytest.mark.long, pytest.mark.timeout(900)]
CASES = [
    *(pytest.param(s, 1, STEP, number, id=s.slug) for number, s in enumerate(SCENARIOS)),
    *(pytest.param(s, 1, 1, 0, id=f"{s.slug}-all", marks=LONG) for s in SCENARIOS),
    *(pytest.param(s, 2, 1, 0, id=f"{s.slug}-all-twice", marks=LONG) for s in SCENARIOS),
]


@pytest.mark.parametrize(("scenario", "times", "step", "offset"), CASES)
def test_killed_right_before_each_call(
    tmp_path: Path, scenario: Scenario, times: int, step: int, offset: int
) -> None:
    """Whenever the program dies, everybody's mail is at the server, on disk, or bounced."""
    with rehearsed(scenario, tmp_path, many=step == 1) as (programs, _clean):
        _kill_at_each_call(tmp_path, scenario, programs, times, step, offset)


def _kill_at_each_call(
    tmp_path: Path, scenario: Scenario, programs: Programs, times: int, step: int, offset: int
) -> None:
    with telling(scenario, tmp_path, programs) as stage:
        calls = tracing.calls_of(tracing.MUTATING, stage.faulty, scenario.threads)
        stage.recover()
        assert stage.verdict().duplicates == 0
    assert len(calls) >= 10
    points = tracing.some(calls, step, offset)
    bound = scenario.bound * times
    killed: list[int] = []
    duplicates: list[int] = []
    lock = threading.Lock()

    def kill(call: Call) -> None:
        with telling(scenario, tmp_path, programs) as stage:
            statuses = []
            for moment in (*("killed",) * times, "recovered"):
                if moment == "recovered":
                    stage.recover()
                else:
                    statuses.append(stage.faulty(tracing.kill_at(call, scenario.threads)).status)
                verdict = stage.verdict()
                assert not verdict.lost, f"{moment} at {call}: {verdict}"
                assert not verdict.strange, f"{moment} at {call}: {verdict}"
                assert verdict.duplicates <= bound, f"{moment} at {call}: {verdict}"
            assert set(statuses) <= {-signal.SIGKILL, 0, 111}, f"{statuses} at {call}"
            with lock:
                killed.append(statuses[0] == -signal.SIGKILL)
                duplicates.append(verdict.duplicates)

    tracing.at_each(points, kill)
    # The kernel may take and pack what goes over the socket otherwise than in the first run.
    assert len(points) - sum(killed) <= max(3, len(points) // 4)
    scenarios.report(
        "kill" if times == 1 else "kill twice",
        scenario,
        points=sum(killed),
        lost=0,
        duplicates=sum(duplicates),
        most_at_once=max(duplicates),
        bound=bound,
    )
