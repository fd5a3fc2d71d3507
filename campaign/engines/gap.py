"""GAP: Gaussian approximation potentials, fitted by ``gap_fit`` and evaluated by quippy, both of QUIP.

A. P. Bartók, M. C. Payne, R. Kondor and G. Csányi, Phys. Rev. Lett. 104, 136403 (2010); SOAP: A. P. Bartók, R. Kondor
and G. Csányi, Phys. Rev. B 87, 184115 (2013). Many-body SOAP and a pair term, fitted to energies, forces and virials at
once. What is fitted is one XML text, which is kept as it is, but for the time in its label.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from campaign.engines import process
from campaign.engines.schnetpack import _UNITS, _Evaluates, read_model, require_species
from campaign.engines.schnetpack_data import held_back, require_labels, species_present, training_set
from campaign.errors import EngineError
from campaign.frames import Array, Frames
from campaign.science.neighbours import require_sound
from campaign.science.references import reference_energies

if TYPE_CHECKING:
    from campaign.engines.checkpoints import Execution

#: What a spec may leave out: SOAP and pairs of the NPT study (lengths Å, energies eV), errors that the labels are taken
#: to have (eV/atom, eV/Å, eV/atom), and seconds for a fit.
DEFAULTS: dict[str, Any] = {
    "cutoff": 9.0,
    "n_max": 5,
    "l_max": 4,
    "width": 1.0,
    "zeta": 4,
    "sparse": 500,
    "pairs": 100,
    "delta": 1.0,
    "pair_delta": 0.1,
    "noise": {"energy": 0.001, "forces": 0.05, "virial": 0.05},
    "timeout": 86400,
}
#: Å over which neighbours fade out.
_FADE = 1.0
#: Part of the frames held back to tell the error; as of the networks, which choose their epoch by them.
_HELD_BACK = 0.1
#: Format of an exported file: that of the networks, with another ``model``.
_FORMAT = 3
#: What ``model`` is in an exported file.
MODEL = "quippy.GAP"
#: How the text of a fitted potential begins, and the name that stands in it for the time of the fit.
_LABEL, _NAME = re.compile(r"<(GAP_[0-9_]+)>"), "GAP_campaign"
INSTALL = "pip install 'campaign[gap]'"
Results = tuple[Array, Array, Array]


def program() -> Path:
    """Return ``gap_fit`` as it lies in the package quippy.

    Raises
    ------
    EngineError
        quippy is not installed.
    """
    found = find_spec("quippy")
    if found is None or found.origin is None or find_spec("f90wrap") is None:
        raise EngineError(f"GAP needs quippy, which is not installed; install it with: {INSTALL}")
    return Path(found.origin).with_name("gap_fit")


def command_of(spec: Mapping[str, Any], seed: int, numbers: Array, energies: Array, fewest: int) -> list[str]:
    """Return the arguments of ``gap_fit``, whose files are all in its own folder.

    Parameters
    ----------
    spec
        ``DEFAULTS`` for what is left out.
    seed
        Of the choice of sparse points.
    numbers, energies : (s,)
        Species and their reference energies, eV.
    fewest
        Atoms of the rarest species: there are no more sparse points than that.
    """
    from ase.data import chemical_symbols

    p = DEFAULTS | dict(spec)
    noise = DEFAULTS["noise"] | dict(p["noise"])
    ends = f"cutoff={p['cutoff']!r} cutoff_transition_width={_FADE!r}"
    soap = (
        f"soap {ends} n_max={p['n_max']} l_max={p['l_max']} atom_sigma={p['width']!r} zeta={p['zeta']} "
        f"delta={p['delta']!r} covariance_type=dot_product sparse_method=cur_points "
        f"n_sparse={min(p['sparse'], fewest)} add_species=T"
    )
    pairs = (
        f"distance_2b {ends} delta={p['pair_delta']!r} covariance_type=ard_se theta_uniform=1.0 "
        f"sparse_method=cur_points n_sparse={p['pairs']} add_species=T"
    )
    offsets = ":".join(f"{chemical_symbols[z]}:{float(e)!r}" for z, e in zip(numbers, energies, strict=True))
    return [
        "at_file=train.xyz",
        f"gap={{{pairs} : {soap}}}",
        f"e0={{{offsets}}}",
        f"default_sigma={{{noise['energy']!r} {noise['forces']!r} {noise['virial']!r} 0.0}}",
        "energy_parameter_name=fit_energy",
        "force_parameter_name=fit_forces",
        "virial_parameter_name=fit_virial",
        "force_mask_parameter_name=fit_mask",
        "do_copy_at_file=F",
        "sparse_separate_file=F",
        "gp_file=gap.xml",
        f"rnd_seed={seed % (2**31 - 2) + 1}",
    ]


def _write(path: Path, blocks: Sequence[Frames], counted: Sequence[Array]) -> None:
    """Write labelled frames for ``gap_fit``: virials are minus stress times volume, and a mask leaves forces out."""
    from ase import Atoms
    from ase.io import write

    images = []
    for block, some in zip(blocks, counted, strict=True):
        for k in range(len(block)):
            atoms = Atoms(block.numbers[k], block.positions[k], cell=block.cell[k], pbc=True)
            atoms.info["fit_energy"] = float(block.energy[k])
            atoms.info["fit_virial"] = (-block.stress[k] * float(block.volume[k])).ravel()
            atoms.arrays["fit_forces"] = block.forces[k]
            atoms.arrays["fit_mask"] = ~some[k]
            images.append(atoms)
    write(path, images, format="extxyz")


def train(
    blocks: Sequence[Frames],
    spec: Mapping[str, Any],
    seed: int,
    on_epoch: Callable[[dict[str, float]], None],
    counted: Sequence[Array] | None,
    execution: Execution,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Fit one potential; arguments and results as of ``schnetpack_train.train``, in one epoch.

    Raises
    ------
    EngineError
        No frames, a frame without labels, quippy is not installed, or ``gap_fit`` failed or ran out of time.
    """
    start = time.perf_counter()
    binary = program()
    some = [np.ones(b.numbers.shape, dtype=bool) for b in blocks] if counted is None else list(counted)
    pairs = [(b, c) for b, c in zip(blocks, some, strict=True) if len(b)]
    require_labels([b for b, _ in pairs])
    numbers, energies = reference_energies([b for b, _ in pairs])
    kept, held = _split(pairs, seed)
    fewest = min(n for z in numbers if (n := sum(int((b.numbers == z).sum()) for b, _ in kept)))
    learnt = training_set([b for b, _ in pairs], None if counted is None else [c for _, c in pairs])
    folder = _folder(execution)
    _write(folder / "train.xyz", [b for b, _ in kept], [c for _, c in kept])
    command = [str(binary), *command_of(spec, seed, numbers, energies, fewest)]
    xml = _fit(command, folder, float(spec.get("timeout", DEFAULTS["timeout"])))
    shutil.rmtree(folder, ignore_errors=True)  # of a fit that failed it stays
    weights = {
        "xml": np.frombuffer(xml, dtype=np.uint8),
        "reference.numbers": numbers,
        "reference.energies": energies,
        "training_set": np.frombuffer(learnt, dtype=np.uint8),
    }
    rmse = _force_rmse(GAP(spec, weights), held)
    on_epoch({"epoch": 1, "loss": rmse, "force_rmse": rmse})
    summary = {
        "epochs": 1,
        "best_epoch": 1,
        "loss": rmse,
        "force_rmse": rmse,
        "train_frames": sum(len(b) for b, _ in kept),
        "held_back": sum(len(b) for b, _ in held),
        "seconds": time.perf_counter() - start,
        "species": [int(z) for z in numbers],
        "elements_reference": {int(z): float(e) for z, e in zip(numbers, energies, strict=True)},
        "training_set": learnt.hex(),
    }
    return weights, summary


def _folder(execution: Execution) -> Path:
    """Return an empty folder for the files of a fit, in the task's own where there is one."""
    if execution.checkpoint is None:
        return Path(tempfile.mkdtemp(prefix="gap-"))
    folder = execution.checkpoint.with_name("gap_fit")
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt before
    folder.mkdir()
    return folder


def _fit(command: Sequence[str], folder: Path, timeout: float) -> bytes:
    """Run ``gap_fit`` and return the potential, its label without the time: the same fit gives the same bytes.

    Raises
    ------
    EngineError
        With its own last words, which are not on its last line.
    """
    try:
        process.run(command, folder, timeout)
    except EngineError as error:
        printed = "".join((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        _, abort, words = printed.rpartition("SYSTEM ABORT:")
        raise EngineError(f"{error} {' '.join(words.split())[:300]}" if abort else str(error)) from error
    path = folder / "gap.xml"
    text = path.read_text() if path.exists() else ""
    label = _LABEL.match(text)
    if label is None or f"</{label[1]}>" not in text:
        raise EngineError(f"gap_fit ended without an error and left no whole potential; see {folder / 'stdout'}.")
    return text.replace(label[1], _NAME).encode()


def _split(
    pairs: list[tuple[Frames, Array]], seed: int
) -> tuple[list[tuple[Frames, Array]], list[tuple[Frames, Array]]]:
    """Return the frames to fit and those held back (``schnetpack_data.held_back``), a tenth; a single frame is both."""
    total = sum(len(b) for b, _ in pairs)
    back = np.zeros(total, dtype=bool)
    order = np.random.default_rng([seed & (2**63 - 1), 0x7261696E]).permutation(total)
    back[held_back(order, max(1, round(_HELD_BACK * total)), species_present([b for b, _ in pairs]))] = True
    masks = np.split(back, np.cumsum([len(b) for b, _ in pairs])[:-1])
    fit = [~m if total > 1 else m for m in masks]
    chosen = [[(b[m], c[m]) for (b, c), m in zip(pairs, some, strict=True) if m.any()] for some in (fit, masks)]
    return chosen[0], chosen[1]


def _force_rmse(model: GAP, held: list[tuple[Frames, Array]]) -> float:
    off = [(model.evaluate(block)[1] - block.forces)[some] for block, some in held]
    flat = np.concatenate([d.ravel() for d in off])
    return float(np.sqrt(np.mean(flat**2))) if len(flat) else 0.0


class GAP(_Evaluates):
    """A fitted potential: energy, forces and stress of frames, in float64.

    Parameters
    ----------
    spec
        What :func:`train` took.
    weights
        What it returned.
    """

    def __init__(self, spec: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        program()
        from quippy.potential import Potential

        self.spec = dict(spec)
        self.weights = {k: np.asarray(v) for k, v in weights.items()}
        self.cutoff = float(spec.get("cutoff", DEFAULTS["cutoff"]))
        self.species = [int(z) for z in self.weights["reference.numbers"]]
        with tempfile.TemporaryDirectory(prefix="gap-") as folder:
            path = Path(folder, "gap.xml")
            path.write_bytes(self.weights["xml"].astype(np.uint8).tobytes())
            self._calculator = Potential(f"IP GAP label={_NAME}", param_filename=str(path))

    def evaluate(self, frames: Frames, pairs: object = None) -> Results:
        """Return energy (n,) eV, forces (n, a, 3) eV/Å and stress (n, 3, 3) eV/Å^3, tension positive.

        Raises
        ------
        EngineError
            A species that it was not fitted to.
        Unphysical
            Positions or cell are not finite.
        """
        return self._evaluate(frames)[:3]

    def atomic_energies(self, frames: Frames) -> Array:
        """Return (n, a) eV; they add up to the energy."""
        return self._evaluate(frames)[3]

    def _evaluate(self, frames: Frames) -> tuple[Array, Array, Array, Array]:
        from ase import Atoms
        from ase.stress import voigt_6_to_full_3x3_stress

        require_species(frames, self.species, "potential")
        require_sound(frames, self.cutoff)
        n, a = frames.numbers.shape
        energy, forces, stress, each = np.zeros(n), np.zeros((n, a, 3)), np.zeros((n, 3, 3)), np.zeros((n, a))
        for k in range(n):
            atoms = Atoms(frames.numbers[k], frames.positions[k], cell=frames.cell[k], pbc=True)
            self._calculator.calculate(atoms, ["energy", "forces", "stress", "energies"])
            found = self._calculator.results
            energy[k], forces[k], each[k] = found["energy"], found["forces"], found["energies"]
            stress[k] = voigt_6_to_full_3x3_stress(found["stress"])
        return energy, forces, stress, each

    @property
    def training_set(self) -> str:
        """Hash of the frames, labels and forces that it was fitted to, 32 hex digits."""
        return self.weights["training_set"].astype(np.uint8).tobytes().hex()

    def export(self, path: Path | str) -> None:
        """Write a torch file for ``model_files.load_model_file``; it carries what that of a network does."""
        import torch

        data = {
            "format": _FORMAT,
            "model": MODEL,
            "cutoff": self.cutoff,
            "species": self.species,
            "units": _UNITS,
            "reference_energies": dict(zip(self.species, self.weights["reference.energies"].tolist(), strict=True)),
            "training_set": self.training_set,
            "spec": self.spec,
            "weights": {k: torch.from_numpy(np.array(v)) for k, v in self.weights.items()},
        }
        torch.save(data, Path(path))

    @classmethod
    def load(cls, path: Path | str) -> GAP:
        """Read what :meth:`export` wrote; nothing in the file is executed.

        Raises
        ------
        EngineError
            The file is not such a potential, or quippy is not installed.
        """
        data = read_model(path, (_FORMAT,))
        try:
            if data["model"] != MODEL:
                raise KeyError(f"a model of {data['model']}")
            return cls(data["spec"], {k: v.numpy() for k, v in data["weights"].items()})
        except (KeyError, RuntimeError, AttributeError) as error:
            cause = str(error).split("\n")[0]
            raise EngineError(f"{path} is damaged or no GAP ({cause}); export the model again.") from error
