"""Stands for CP2K where it fails: ``python fake_cp2k.py FAULT -i INPUT -o OUTPUT`` writes an output, or damages it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BOX = """
 *******************************************************************************
 *   ___                                                                       *
 *  /   \\                                                                      *
 * [ABORT]                                                                     *
 *  \\___/       The number of electrons is odd, use the LSD option              *
 *    |                                                                        *
 *  O/|                                                                        *
 * /| |                                                                        *
 * / \\                                            qs_environment.F:1207 *
 *******************************************************************************
"""
TEXT = (Path(__file__).parent / "argon.out").read_text()
FULL = " *** WARNING in qs_mo_occupation.F:1 :: Fermi-Dirac smearing includes the last MO ***\n\n"
HALF = TEXT[: TEXT.index(" ENERGY|")]


def die(text: str, number: int) -> None:
    """Leave a part of an output and die of a signal."""
    Path("output.out").write_text(text)
    os.kill(os.getpid(), number)


def main() -> None:
    fault = sys.argv[1]
    given = Path("input.inp").read_text()
    Path("frame-RESTART.wfn").write_text("wavefunction")
    with open("started", "a") as notes:
        notes.write(f"{os.environ['OMP_NUM_THREADS']}\n")
    unconverged = TEXT.replace("  outer SCF loop converged in ", "  outer SCF loop FAILED to converge after ")
    texts = {
        "good": TEXT,
        "garbage": "\x00\x17 not an output \xff\n" * 50,
        "empty": "",
        "unconverged": unconverged,
        "truncated": HALF,
        "nan": TEXT.replace("0.00045203691777", "             NaN"),
        "no room": TEXT.replace("  *** SCF run converged", f"{FULL}  *** SCF run converged"),
        "coarse": TEXT.replace("0.00045203691777", "0.10045203691777"),
        "lost atom": TEXT.replace(
            "      4    1 Ar   18      2.680050      2.816969     -0.164811   8.0000  39.9480\n", ""
        ),
        "third rung": TEXT if "MAX_SCF 77" in given else unconverged,
        "exit code": TEXT,
        "serial": " GLOBAL| Total number of message passing processes                             1\n" + TEXT,
    }
    if fault in texts:
        Path("output.out").write_text(texts[fault])
        sys.exit(3 if fault == "exit code" else 0)
    if fault == "abort":
        Path("output.out").write_text(HALF + BOX)
        sys.exit(1)
    if fault == "refused":
        Path("output.out").write_text(TEXT[: TEXT.index(" SCF WAVEFUNCTION")] + BOX)
        sys.exit(1)
    if fault == "no executable":
        print("mpirun was unable to find the specified executable file, and therefore\ndid not launch", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGABRT)
    if fault == "killed":
        die(HALF, signal.SIGKILL)
    if fault == "mpirun killed":
        Path("output.out").write_text(HALF)
        print("mpirun noticed that process rank 1 with PID 0 on node n exited on signal 9 (Killed).", file=sys.stderr)
        sys.exit(137)
    if fault == "crash":
        die(HALF, signal.SIGSEGV)
    if fault == "told to stop":
        die(HALF, signal.SIGTERM)
    if fault == "full":
        Path("output.out").write_text(HALF)
        sys.exit("Fortran runtime error: No space left on device")
    if fault == "slots":
        sys.exit("There are not enough slots available in the system to satisfy the 64\nslots that were requested")
    if fault == "hang":
        Path("output.out").write_text(HALF)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path("child").write_text(str(child.pid))
        time.sleep(60)
    raise SystemExit(f"no such fault: {fault}")


main()
