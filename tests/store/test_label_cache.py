"""Labels that campaigns share: the same numbers back to the last bit, or nothing at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from campaign.frames import Frames
from campaign.store.label_cache import LabelCache, label_key


def frame(seed: int = 0, atoms: int = 4) -> Frames:
    rng = np.random.default_rng(seed)
    return Frames.build(np.full(atoms, 18), rng.uniform(0, 5, (1, atoms, 3)), np.eye(3) * 5)


def labelled(seed: int = 0, atoms: int = 4) -> Frames:
    rng = np.random.default_rng(seed)
    stress = rng.normal(size=(1, 3, 3))
    return frame(seed, atoms).with_(
        energy=rng.normal(size=1), forces=rng.normal(size=(1, atoms, 3)), stress=stress + np.swapaxes(stress, 1, 2)
    )


def test_a_label_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    cache, given = LabelCache(tmp_path / "shared"), labelled()
    key = label_key(given, "method")
    assert cache.get(key, 4) is None
    assert cache.put(key, given, {"scf_steps": 12, "versions": {"cp2k": "2023.1"}}) == ""
    found = LabelCache(tmp_path / "shared").get(key, 4)
    assert found is not None
    for name in ("energy", "forces", "stress"):
        assert getattr(found, name).tobytes() == getattr(given, name).tobytes()
        assert getattr(found, name).shape == getattr(given, name).shape
    assert found.about == {"scf_steps": 12, "versions": {"cp2k": "2023.1"}}
    assert [p.name for p in (tmp_path / "shared").rglob("*") if p.is_file()] == [f"{key}.label"]
    assert cache.damaged == []


def test_geometry_and_method_make_the_key_and_nothing_else() -> None:
    base = frame()
    key = label_key(base, "a")
    assert label_key(frame(), "a") == key
    assert label_key(base.with_(step=np.array([9]), energy=np.array([1.0]), walker=np.array([3])), "a") == key
    assert label_key(base, "b") != key
    moved = base.positions.copy()
    moved[0, 3, 2] = np.nextafter(moved[0, 3, 2], 9)
    others = [
        base.with_(positions=moved),
        base.with_(numbers=np.array([[18, 18, 18, 17]])),
        base.with_(cell=base.cell * (1 + 1e-15)),
        frame(0, 5),
    ]
    assert len({key, *(label_key(f, "a") for f in others)}) == 5


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other", "format", "text"])
def test_a_damaged_label_is_none_and_is_said_once(tmp_path: Path, harm: str) -> None:
    cache, key = LabelCache(tmp_path), label_key(frame(), "m")
    cache.put(key, labelled(), {})
    path = cache.path(key)
    content = path.read_bytes()
    if harm == "other":  # whole, but of another frame
        cache.put("0" * 40, labelled(1), {})
        path.write_bytes(cache.path("0" * 40).read_bytes())
    elif harm == "flip":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    else:
        changed = {"cut": content[:-8], "empty": b"", "format": b"campaign label 9\n" + content[17:], "text": b"hi\n"}
        path.write_bytes(changed[harm])
    assert cache.get(key, 4) is None
    assert len(cache.damaged) == 1
    assert f"{path} is damaged" in cache.damaged[0]
    again = LabelCache(tmp_path)
    assert again.get(key, 4) is None
    assert again.damaged == []  # it was set aside
    assert again.put(key, labelled(), {}) == ""
    assert again.get(key, 4) is not None


@pytest.mark.parametrize("versions", ["2023.1", ["cp2k"], {"cp2k": 2023.1}, None])
def test_a_label_that_does_not_say_properly_who_computed_it_is_not_taken(tmp_path: Path, versions: object) -> None:
    cache = LabelCache(tmp_path)
    cache.put("1" * 40, labelled(), {"versions": versions})
    assert cache.get("1" * 40, 4) is None
    assert "is no list of versions" in cache.damaged[0]


def test_a_label_of_another_number_of_atoms_is_never_taken(tmp_path: Path) -> None:
    cache = LabelCache(tmp_path)
    cache.put("1" * 40, labelled(), {})
    assert cache.get("1" * 40, 5) is None


def test_a_folder_that_cannot_be_written_costs_no_label(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = LabelCache(tmp_path / "file" / "cache")
    assert "was not kept" in cache.put("2" * 40, labelled(), {})
    assert cache.get("2" * 40, 4) is None


def fill(folder: str, seed: int) -> None:
    cache = LabelCache(Path(folder))
    for k in range(40):
        cache.put(label_key(frame(k), "m"), labelled(k), {"by": os.getpid(), "seed": seed})


def test_two_campaigns_fill_one_folder_at_once(tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({__file__!r})['fill']({str(tmp_path)!r}, {{}})"
    writers = [subprocess.Popen([sys.executable, "-c", code.format(seed)]) for seed in range(2)]
    cache = LabelCache(tmp_path)
    seen = 0
    while any(w.poll() is None for w in writers):
        for k in range(40):
            found = cache.get(label_key(frame(k), "m"), 4)
            if found is not None:
                seen += 1
                assert found.energy[0] == labelled(k).energy[0]
    assert [w.wait() for w in writers] == [0, 0]
    assert cache.damaged == []
    assert seen > 0
    names = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert len(names) == 40
    assert not [n for n in names if n.startswith(".")]
