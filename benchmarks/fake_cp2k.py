"""A stand-in for ``cp2k.psmp``: reads the real input, writes what CP2K 2023.1 writes, and fails in every known way.

Energy: a spring of K eV/Å^2 from each atom to the mean of all, so forces sum to nothing and everything is exact.
What happens to a frame stands in the file named by FAKE_CP2K: ``{"faults": {x of the first atom, 6 decimals: fault},
"seconds": S}``; beside it ``log`` gets a line for each start and each end, ``once`` holds what was done once.
Where it came to SCF's end it leaves a wavefunction, and one that the input starts from must be there.
Must start fast: run with ``python -IS``, standard library only.
"""

import json
import math
import os
import signal
import sys
import time

K = 0.5
EV, ANGSTROM, PASCAL = 2.72113838565563e1, 5.29177208590000e-1, 2.94210107994716e13
ELEMENTS = {"Ar": 18, "Na": 11, "Cl": 17}


def read(path):
    """Return (cell rows, [(symbol, x, y, z)], MAX_SCF, wavefunction to start from or None) of an input."""
    cell, atoms, steps, guess, section = [], [], 50, None, []
    with open(path) as file:
        for row in file:
            words = row.split()
            if not words:
                continue
            if words[0].startswith("&END"):
                section.pop()
            elif words[0].startswith("&"):
                section.append(words[0][1:])
            elif section[-1:] == ["CELL"] and words[0] in "ABC":
                cell.append([float(w) for w in words[1:4]])
            elif section[-1:] == ["COORD"]:
                atoms.append((words[0], *map(float, words[1:4])))
            elif section[-1:] == ["SCF"] and words[0] == "MAX_SCF":
                steps = int(words[1])
            elif section[-1:] == ["DFT"] and words[0] == "WFN_RESTART_FILE_NAME":
                guess = words[1]
    return cell, atoms, steps, guess


def evaluate(cell, atoms):
    """Return energy (eV), forces (eV/Å), stress (eV/Å^3, tension positive) and volume (Å^3)."""
    n = len(atoms)
    mean = [sum(a[k] for a in atoms) / n for k in (1, 2, 3)]
    away = [[a[k + 1] - mean[k] for k in range(3)] for a in atoms]
    (a, b, c), (d, e, f), (g, h, i) = cell
    volume = abs(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))
    energy = 0.5 * K * sum(x * x for row in away for x in row)
    stress = [[K * sum(row[p] * row[q] for row in away) / volume for q in range(3)] for p in range(3)]
    return energy, [[-K * x for x in row] for row in away], stress, volume


def length(vector):
    """Return the length of a vector."""
    return math.sqrt(sum(x * x for x in vector))


def angle(one, other):
    """Return the angle between two vectors in degrees."""
    return math.degrees(math.acos(sum(x * y for x, y in zip(one, other, strict=False)) / length(one) / length(other)))


def output(cell, atoms, steps, fault):
    """Return the text of the output, in parts: up to SCF, SCF, the results, the end."""
    energy, forces, stress, volume = evaluate(cell, atoms)
    listed = atoms[:-1] if fault == "atoms" else atoms
    start = [
        "",
        "  **** **** ******  **  PROGRAM STARTED AT               2026-11-20 11:26:15.734",
        "",
        f" CP2K| version string: {'CP2K version 2023.1':>57}",
        "",
        f" [a.u.] = [Bohr] -> [Angstrom] {ANGSTROM:49.14E}",
        f" [a.u.] -> [Pa] {PASCAL:64.14E}",
        f" [a.u.] -> [eV] {EV:64.14E}",
        "",
        f" CELL| Volume [angstrom^3]: {volume:52.6f}",
        *(
            f" CELL| Vector {name} [angstrom]:" + "".join(f"{x:10.3f}" for x in v) + f"   |{name}| = {length(v):12.6f}"
            for name, v in zip("abc", cell, strict=False)
        ),
        *(
            f" CELL| Angle ({i},{j}), {name:<5s} [degree]: {angle(cell['abc'.index(i)], cell['abc'.index(j)]):49.6f}"
            for i, j, name in (("b", "c", "alpha"), ("a", "c", "beta"), ("a", "b", "gamma"))
        ),
        f" DFT| Spin restricted Kohn-Sham (RKS) calculation {'RKS':>30}",
        f" DFT| Multiplicity {1:61d}",
        f" DFT| Charge {0:67d}",
        "",
        " MODULE QUICKSTEP: ATOMIC COORDINATES IN ANGSTROM",
        "",
        "   Atom Kind Element         X             Y             Z       Z(eff)     Mass",
        *(
            f"{k:7d}    1 {s:<2s} {ELEMENTS[s]:4d}  {x:12.6f}  {y:12.6f}  {z:12.6f}   8.0000  39.9480"
            for k, (s, x, y, z) in enumerate(listed, 1)
        ),
        "",
        "",
        f" Number of electrons: {8 * len(listed):58d}",
        "",
        " SCF WAVEFUNCTION OPTIMIZATION",
        "",
        "  Step     Update method      Time    Convergence         Total energy    Change",
        "  " + "-" * 78,
    ]
    last = 0.01 if fault == "unconverged" else 4e-7
    total = energy / EV
    scf = [f"{k:6d} OT DIIS     0.80E-01    0.8     {0.1 / k:10.8f} {total:19.10f} -1.00E-02" for k in range(1, steps)]
    scf = [*scf[:8], f"{min(steps, 9):6d} OT DIIS     0.80E-01    0.8     {last:10.8f} {total:19.10f} -1.00E-09", ""]
    if fault == "unconverged":
        scf += [f"  Leaving inner SCF loop after reaching {steps:5d} steps.", ""]
        scf += [" *** WARNING in qs_scf.F:598 :: SCF run NOT converged ***", ""]
    else:
        scf += [f"  *** SCF run converged in {9:5d} steps ***", ""]
    energy_text = "NaN".rjust(32) if fault == "nan" else f"{total:32.18f}"
    results = [
        f" ENERGY| Total FORCE_EVAL ( QS ) energy [a.u.]: {energy_text}",
        "",
        " ATOMIC FORCES in [a.u.]",
        "",
        " # Atom   Kind   Element          X                    Y                    Z",
        *(
            f"{k:7d}      1      {atom[0]:<2s}     " + " ".join(f"{x / EV * ANGSTROM:20.16f}" for x in force)
            for k, (atom, force) in enumerate(zip(listed, forces, strict=False), 1)
        ),
        " SUM OF ATOMIC FORCES           0.00000000000000     0.00000000000000     0.00000000000000",
        "",
        " STRESS| Analytical stress tensor [GPa]",
        " STRESS|                        x                   y                   z",
        *(
            f" STRESS|      {name} " + " ".join(f"{-x / EV * ANGSTROM**3 * PASCAL / 1e9:21.14E}" for x in row)
            for name, row in zip("xyz", stress, strict=False)
        ),
        "",
    ]
    end = [
        " The number of warnings for this run is : 0",
        "",
        "  **** **** ******  **  PROGRAM ENDED AT                 2026-11-20 11:27:26.289",
        "",
    ]
    return start, scf, results, end


def box(*rows):
    """Return CP2K's box about an abort."""
    art = ["  ___ ", " /   \\", "[ABORT]", " \\___/", "   |  ", " O/|  ", "/| |  ", " / \\  "]
    rows = ["", "", *rows, "", "", "", "", ""][:8]
    lines = [f" *{a:>8}   {row:<66}*" for a, row in zip(art, rows, strict=False)]
    return ["", " " + "*" * 79, *lines, " *" + "common/cp_fm_cholesky.F:206".rjust(77) + "*", " " + "*" * 79, ""]


def main():
    """Do one single point."""
    words = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    plan_path = os.environ["FAKE_CP2K"]
    folder = os.path.dirname(plan_path)
    with open(plan_path) as file:
        plan = json.load(file)
    cell, atoms, steps, guess = read(words["-i"])
    key = f"{atoms[0][1]:.6f}"
    fault = plan["faults"].get(key, "good")

    def log(what):
        there = guess is not None and os.path.isfile(guess)
        found = {"key": key, "what": what, "time": time.time(), "attempt": os.path.basename(os.getcwd())}
        line = json.dumps({**found, "guess": "found" if there else "missing" if guess else None})
        fd = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, line.encode() + b"\n")
        os.close(fd)

    def first():
        """Tell whether this frame was never here before."""
        try:
            os.close(os.open(os.path.join(folder, "once", key), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    log("start")
    time.sleep(plan.get("seconds", 0.0))
    if fault == "rung3":
        fault = "good" if steps >= 300 else "unconverged"
    if fault.endswith("_once"):
        fault = fault.removesuffix("_once") if first() else "good"
    start, scf, results, end = output(cell, atoms, steps, fault)
    rows = [*start, *scf, *results, *end]
    if fault == "crash":
        rows = [*start, *box("Cholesky decompose failed: the matrix is not", "positive definite or ill-conditioned.")]
    elif fault in ("segfault", "killed", "hang"):
        rows = [*start, *scf[:3]]
    elif fault == "truncated":
        rows = [*start, *scf, *results[:6]]
    elif fault == "garbage":
        rows = ["\x00\x01 this is not an output \x7f"] * 40
    elif fault == "disk":
        sys.stderr.write("At line 1 of file cp2k.F: Fortran runtime error: No space left on device\n")
        sys.exit(2)
    if fault in ("good", "unconverged"):
        with open("frame-RESTART.wfn", "w") as file:
            file.write("a wavefunction\n")
    with open(words["-o"], "w") as file:
        file.write("\n".join(rows) + "\n")
    if fault == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    if fault in ("segfault", "killed"):
        os.kill(os.getpid(), signal.SIGSEGV if fault == "segfault" else signal.SIGKILL)
    log("end" if fault == "good" else fault)
    sys.exit(1 if fault == "crash" else 0)


if __name__ == "__main__":
    main()
