"""One forward of a model for many walkers: each in a thread of its own, which rests while another one runs.

LAMMPS asks for forces in the middle of a step, and nothing but a thread can wait there. Threads take turns: a walker
runs up to its next question, then the next one, and when all that are left have asked, the model answers them at once,
in the thread that drives them. So two LAMMPS, or LAMMPS and the network, never run at the same time, and who is asked
together with whom hangs on nothing but the walkers themselves: a repetition is bitwise the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from campaign.engines.fast_forces import Found, fast_forces
from campaign.errors import EngineError
from campaign.frames import Array, Frames


class Moving(Protocol):
    """A walker's atoms as the model is to see them, one frame after another."""

    def update(self, positions: Array, cell: Array) -> None:
        """Take the next frame: (a, 3) and (3, 3), Å."""


class Together(Protocol):
    """Energy, forces and stress of several walkers of the same atoms at once."""

    def begin(self) -> Any:
        """Return the ``Moving`` atoms of a new walker."""

    def evaluate_all(self, walkers: Sequence[Any]) -> list[Found]:
        """Return energy, forces and stress of each walker's last frame, as of one alone but for rounding."""


class PlainForces:
    """The ``Together`` of a model without a fast way: all frames go through its ``evaluate``.

    Parameters
    ----------
    model
        A trained potential.
    numbers : (a,)
        Atomic numbers.
    """

    def __init__(self, model: Any, numbers: Array) -> None:
        self._model, self._numbers = model, np.asarray(numbers)

    def begin(self) -> _Frame:
        """Return the frame of a new walker."""
        return _Frame()

    def evaluate_all(self, walkers: Sequence[_Frame]) -> list[Found]:
        """Return energy, forces and stress of each walker's last frame."""
        positions, cells = (np.stack([getattr(w, name) for w in walkers]) for name in ("positions", "cell"))
        energy, forces, stress = self._model.evaluate(Frames.build(self._numbers, positions, cells))
        return [(float(energy[k]), forces[k], stress[k]) for k in range(len(walkers))]


class _Frame:
    """A walker's last frame as it is: (a, 3) and (3, 3), Å."""

    positions: Array
    cell: Array

    def update(self, positions: Array, cell: Array) -> None:
        self.positions, self.cell = positions, cell


class Turn(threading.Thread):
    """A piece of work that stops at every question, and goes on with the answer when it is told to.

    Parameters
    ----------
    work
        Called with this object, in a thread of its own; asks by :meth:`ask`.

    Attributes
    ----------
    question
        What it waits for an answer to; None before it was first told to go, and after its end.
    result, error
        What ``work`` returned, or what it raised.
    """

    def __init__(self, work: Callable[[Turn], Any]) -> None:
        super().__init__(daemon=True)  # it waits for ever where nobody asks it to end: never the end of the process
        self._work = work
        self._go, self._rest = threading.Lock(), threading.Lock()  # who waits takes one, who goes on frees it
        self._go.acquire()
        self._rest.acquire()
        self._running = False
        self._answer: Any = None
        self.question: Any = None
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the work; called by ``start``."""
        self._go.acquire()
        try:
            self.result = self._work(self)
        except BaseException as error:  # for whoever drives it
            self.error = error
        self.question = None
        self._rest.release()

    def ask(self, question: Any) -> Any:
        """Rest until there is an answer, and return it; in the thread.

        Raises
        ------
        Exception
            The answer, where it is one.
        """
        self.question = question
        self._rest.release()
        self._go.acquire()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def go(self, answer: Any = None) -> None:
        """Let it run to its next question or its end, and wait for that."""
        self._answer, self._running = answer, True
        self._go.release()
        self._settle()

    def close(self) -> None:
        """Bring it to its end, wherever it is; its result counts for nothing."""
        if self._running:  # the wait for it was interrupted
            self._settle()
        while self.question is not None:
            self.go(EngineError("The walker was stopped, because another one of its task failed."))

    def _settle(self) -> None:
        self._rest.acquire()
        self._running = False


class Batch:
    """A model for all walkers of a task.

    Parameters
    ----------
    model
        A trained potential.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._together: Together | None = None
        self._numbers = np.zeros(0, dtype=int)

    def begin(self, numbers: Array) -> Any:
        """Return the ``Moving`` atoms of a new walker; all have the same ``numbers`` (a,).

        Raises
        ------
        EngineError
            The model does not know one of the elements; or these are other atoms than the other walkers'.
        """
        if self._together is None:
            self._together = fast_forces(self._model, numbers) or PlainForces(self._model, numbers)
            self._numbers = np.array(numbers)
        if not np.array_equal(numbers, self._numbers):
            raise EngineError("Walkers of one task must have the same atoms in the same order; use a task for each.")
        return self._together.begin()

    def run(self, works: Sequence[Callable[[Share], Any]]) -> list[Any]:
        """Do pieces of work that ask the model, each through a ``Share`` of its own; return what they return.

        Raises
        ------
        Exception
            That of the first piece that raised one: the others are then stopped.
        """
        turns = [Turn(lambda turn, work=work: work(Share(self, turn))) for work in works]  # type: ignore[misc]
        for turn in turns:
            turn.start()
        try:
            for turn in turns:
                turn.go()
            while True:
                error = next((turn.error for turn in turns if turn.error is not None), None)
                if error is not None:
                    raise error
                waiting = [turn for turn in turns if turn.question is not None]
                if not waiting:
                    return [turn.result for turn in turns]
                for turn, answer in zip(waiting, self._answers([t.question for t in waiting]), strict=True):
                    turn.go(answer)
        finally:
            for turn in turns:
                turn.close()

    def _answers(self, walkers: Sequence[Any]) -> Sequence[Found | Exception]:
        """Return energy, forces and stress of each walker, or what went wrong with it.

        Where all together cannot be done, each is asked alone: one bad frame is the failure of one walker.
        """
        assert self._together is not None
        try:
            return self._together.evaluate_all(walkers)
        except EngineError as error:
            if len(walkers) == 1:
                return [error]
            return [answer for walker in walkers for answer in self._answers([walker])]
        except Exception as error:  # no memory, say: of the machine, not of a walker
            return [error] * len(walkers)


class Share:
    """One walker's way to a model that others ask at the same time (``lammps_model.Forces`` of a batch)."""

    def __init__(self, batch: Batch, turn: Turn) -> None:
        self._batch, self._turn = batch, turn

    def begin(self, numbers: Array) -> Share:
        """Take the walker's atoms, (a,) atomic numbers: every LAMMPS begins anew."""
        self._moving = self._batch.begin(numbers)
        return self

    def evaluate(self, positions: Array, cell: Array) -> Found:
        """Return energy, eV, forces (a, 3), eV/Å, and stress (3, 3), eV/Å^3, of the walker's next frame.

        Raises
        ------
        Exception
            What went wrong with it, or with the model.
        """
        self._moving.update(positions, cell)
        found: Found = self._turn.ask(self._moving)
        return found
