"""Executors that bear with their batch system: refused submissions are made again, blocks follow without a gap."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parsl.executors import HighThroughputExecutor as Executor
else:
    Executor = object  # ``executor_class`` puts Parsl's below it

#: Seconds after which a refused submission is tried again: twice as many each time, and at most ``LONGEST``.
FIRST, LONGEST = 2.0, 60.0

#: Submissions refused one after another, and jobs that ended badly one after another, before the executor gives up;
#: so many jobs where one of its blocks has worked before: then it is not the site file that is wrong.
REFUSALS, FAILURES, LATER_FAILURES = 12, 3, 10

#: How Parsl begins what it says of a block that could not be submitted.
REFUSED = "Failed to start block"

#: What is said of a block that runs and has said nothing itself.
IDLE = "its job runs, and no worker of it takes a task"

#: States of blocks that did not work. HELD is what a block is called here that is about to end.
BAD, AT_WORK = ("FAILED", "MISSING"), ("RUNNING", "HELD")

#: What Slurm leaves in the error output of a job that was cancelled, or lost its node: not the site file's fault.
TAKEN = re.compile(r"CANCELLED AT|Job step aborted|got SIGCONT|NODE FAILURE|PREEMPTION|has expired")

#: The next block is asked for so many times the seconds that the last one took to be heard of before one takes no more
#: tasks (its workers start after that), and at most so much of its time.
EARLY, LEAD = 2.0, 0.25

#: Seconds between two looks at which blocks have come up.
LOOK = 1.0


class InterchangeLost(Exception):
    """The interchange ended while it started."""


class Patience(Executor):  # type: ignore[misc]  # Parsl has no types
    """Asks for blocks again, and not at once, where the batch system refused; and before a block ends."""

    whole_nodes = False  # whether each worker has nodes of its own: an MPIExecutor's
    _wait = 0.0
    _again = 0.0
    _looked = 0.0

    def start(self) -> None:
        """Start the interchange; no block was asked for yet."""
        self._asked: dict[str, tuple[float, int]] = {}  # block -> when (s since the epoch), seconds until it drains
        self._ends: dict[str, float] = {}  # block -> when it takes no more tasks
        self._lead = 0.0  # s before that the next one is asked for
        super().start()

    def _start_local_interchange_process(self) -> None:
        """Start the interchange; Parsl would wait two minutes for one that has ended meanwhile.

        Raises
        ------
        InterchangeLost
            It has.
        """
        threading.Thread(target=self._watch_start, daemon=True).start()
        try:
            super()._start_local_interchange_process()
        except Exception as error:
            if cut_off(self):
                raise InterchangeLost from error
            raise

    def _watch_start(self) -> None:
        while self.worker_port is None:
            if cut_off(self):
                self.command_client.zmq_context.term()  # ends the wait for its answer
                return
            time.sleep(0.1)

    def scale_out_facade(self, n: int) -> list[str]:
        """Ask for ``n`` blocks, unless one was refused a moment ago; return the ids of those that were taken."""
        if time.monotonic() < self._again:
            return []
        taken: list[str] = []
        bad = bad_in_a_row(self._status)
        drain = re.search(r"--drain_period=(\d+)", self.launch_cmd)
        while len(taken) < n:
            now, more = time.time(), super().scale_out_facade(1)
            if not more:  # the next one would be refused as well, and count as another refusal
                break
            taken += more
            if drain is not None:
                self._asked |= dict.fromkeys(more, (now, int(drain[1])))
        self._wait = 0.0 if len(taken) == n else min(LONGEST, max(FIRST, 2 * self._wait))
        # nor are jobs that end badly one after another asked for at full speed
        slow = min(LONGEST, FIRST * 2 ** (bad - 2)) if bad > 1 else 0.0
        self._again = time.monotonic() + max(self._wait, slow)
        return taken

    @property
    def workers_per_node(self) -> Any:
        """Of which Parsl reckons how many tasks a block takes: one of whole nodes has less than one on each."""
        each = super().workers_per_node
        return Fraction(self.max_workers_per_block, self.provider.nodes_per_block) if self.whole_nodes else each

    def look_soon(self) -> None:
        """Ask the batch system at the next look: workers were lost, and maybe their block."""
        self._last_poll_time = 0.0

    def poll_facade(self) -> None:
        """Look at the queue when that is due, and at which blocks have come up."""
        super().poll_facade()
        now, coming = time.time(), self._asked.keys() - self._ends.keys()
        if not coming or now < self._looked + LOOK:
            return
        self._looked = now
        for block in coming & set(self.connected_blocks()):
            asked, seconds = self._asked[block]
            self._lead = min(EARLY * (now - asked), LEAD * seconds)
            self._ends[block] = min(max(asked, self._began(block, now)), now) + seconds

    def _began(self, block: str, now: float) -> float:
        """Return when a block's job wrote its first words, which is when it starts; ``now`` if nobody knows."""
        job = self.provider.resources.get(self.blocks_to_job_id.get(block), {})
        try:
            return os.stat(job["job_stdout_path"]).st_mtime
        except (KeyError, OSError):  # some batch systems bring the output at the end
            return now

    @property
    def status_facade(self) -> dict[str, Any]:
        """The state of each block; one is HELD, and not counted, when it is time to ask for the next one.

        The next one comes up while this one does its last tasks. Both are held at once for that long.
        """
        from parsl.jobs.states import JobState, JobStatus

        late = time.time() + self._lead
        leaving = {block for block, end in dict(self._ends).items() if late >= end}
        return {
            block: JobStatus(JobState.HELD, s.message) if block in leaving and s.state == JobState.RUNNING else s
            for block, s in dict(self._status).items()
        }


@lru_cache(maxsize=2)
def executor_class(whole_nodes: bool = False) -> Any:
    """Return Parsl's HighThroughputExecutor, or its MPIExecutor, with ``Patience``; Parsl loads only here."""
    from parsl.executors import HighThroughputExecutor, MPIExecutor

    kind = MPIExecutor if whole_nodes else HighThroughputExecutor
    return type("PatientExecutor", (Patience, kind), {"whole_nodes": whole_nodes})


def cut_off(executor: Any) -> bool:
    """Tell whether an executor's interchange has ended: nothing reaches its workers any more."""
    post = getattr(executor, "interchange_proc", None)
    return post is not None and post.poll() is not None


def bad_in_a_row(status: Mapping[str, Any]) -> int:
    """Return how many of the latest blocks were taken by the batch system and did not work."""
    count = 0
    for block in sorted(status, key=int, reverse=True):
        if not _bad(status[block]):
            break
        count += not (_refused(status[block]) or _taken(status[block]))
    return count


def give_up_late(executor: Any, status: Mapping[str, Any]) -> None:
    """Fail the tasks of an executor only after many refusals, or several bad jobs, one after another.

    And never while a block is at work; nor for refusals while one waits in the queue: a user may have no more.

    Parameters
    ----------
    executor, status
        As Parsl's ``block_error_handler`` is called with: the executor, and the state of each of its blocks.
    """
    last = [status[block] for block in sorted(status, key=int)]
    if getattr(executor, "bad_state_is_set", False) or any(s.state.name in AT_WORK for s in last):
        return
    waiting = any(s.state.name == "PENDING" for s in last)
    last = [s for s in last if not _taken(s)]
    refused = len(last) >= REFUSALS and all(_refused(s) for s in last[-REFUSALS:]) and not waiting
    worked = any(not _bad(s) and s.state.name != "PENDING" for s in last)
    most = LATER_FAILURES if worked else FAILURES
    failed = len(last) >= most and all(_bad(s) and not _refused(s) for s in last[-most:])
    if refused or failed:
        said = [str(s.message) for s in last[-1:]] + [str(s.stderr_summary or "") for s in last[-1:]]
        executor.set_bad_state_and_fail_all(RuntimeError(" ".join(" ".join(said).split())[:1000]))


def _bad(status: Any) -> bool:
    return status.state.name in BAD


def _taken(status: Any) -> bool:
    """Tell whether a job that did not work was taken away before it could; one that was out of time had its chance."""
    said = str(status.stderr_summary or "") if _bad(status) and not _refused(status) else ""
    return "TIME LIMIT" not in said and TAKEN.search(said) is not None


def _refused(status: Any) -> bool:
    return _bad(status) and str(status.message).startswith(REFUSED)
