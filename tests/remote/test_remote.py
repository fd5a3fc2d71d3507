"""The whole way from a laptop to a campaign and back, through Globus Compute's real engine and workers."""

from __future__ import annotations

import json
import os
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest

from campaign.errors import CampaignError, InputError
from campaign.remote import client, protocol
from campaign.remote.client import Options, Remote, fetch, status, submit, wait
from campaign.remote.service import Service
from tests.remote.stand_in import TOY, Endpoint, WebService, until

pytestmark = pytest.mark.requires("globus_compute_endpoint")

SLOW = TOY.replace("segment: 10", "segment: 2, delay: 0.3")


def ledger(endpoint: Endpoint, run: str) -> list[dict[str, Any]]:
    path = endpoint.root / run / "toy/ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(endpoint: Endpoint, run: str) -> list[str]:
    return [r["task"] for r in ledger(endpoint, run) if r["state"] == "done"]


def ask(service: WebService, **request: Any) -> dict[str, Any]:
    """Send a request that ``campaign remote`` itself would not send."""
    there = Service(service.endpoint)
    return there.call(there.register(), request)


def refused(service: WebService, **request: Any) -> str:
    with pytest.raises(InputError) as found:
        ask(service, **request)
    assert str(found.value).startswith(f"endpoint {service.endpoint}: ")
    return str(found.value)


def test_submit_status_wait_fetch(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    run = submit("toy.yaml", service.endpoint, "tiny")
    assert run.startswith("toy-")
    assert status(run)["state"] in ("starting", "running")
    told: list[Any] = []
    found = wait(run, every=0.5, timeout=120, tell=told.append)
    assert (found["state"], found["frames"], found["selected"], found["labelled"]) == ("done", 40, 4, 9)
    assert found["host"] == os.uname().nodename
    assert found["folder"] == str(endpoint.root / run)
    assert told[-1] == found
    report = fetch(run, "report").paths
    assert report == [Path(run) / "report.html"]
    assert "</html>" in report[0].read_text()
    assert report[0].read_bytes() == (endpoint.root / run / "toy/report.html").read_bytes()
    from ase.io import read

    assert len(read(fetch(run, "selected", "set").paths[0], index=":")) == 4
    labelled = read(fetch(run, "labelled", "set").paths[0], index=":")
    assert len(labelled) == 4
    assert labelled[0].get_forces().shape == (32, 3)
    models = fetch(run, "model", "set").paths
    assert [m.read_bytes() for m in models] == [
        p.read_bytes() for p in sorted((endpoint.root / run / "toy/models").glob("*.pt"))
    ]
    assert models


def test_what_is_kept_here_names_no_secret_and_is_for_the_user_alone(
    laptop: Path, endpoint: Endpoint, service: WebService
) -> None:
    run = submit("toy.yaml", service.endpoint, "tiny")
    folder = laptop / "state/campaign/remote"
    kept = json.loads((folder / f"{run}.json").read_text())
    assert kept.pop("submitted") > 0
    assert kept.pop("function") in service.functions
    assert kept == {
        "run": run,
        "endpoint": service.endpoint,
        "site": "tiny",
        "root": "",
        "file": str(laptop / "toy.yaml"),
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    wait(run, every=0.5, timeout=120)
    # the same command again is the same run, another folder's or a new one is not
    assert submit("toy.yaml", service.endpoint, "tiny") == run
    assert wait(run, every=0.5, timeout=120)["state"] == "done"
    other = submit("toy.yaml", service.endpoint, "tiny", options=Options(new=True, until="sample", root="a/b"))
    assert other != run
    assert wait(other, every=0.5, timeout=120)["state"] == "stopped"
    assert (endpoint.root / "a/b" / other / "toy/run.zarr").is_dir()
    again = submit(run=other)
    assert again == other
    assert wait(other, every=0.5, timeout=120)["state"] == "done"


def test_the_campaign_outlives_its_endpoints_worker(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    (laptop / "toy.yaml").write_text(SLOW)
    run = submit("toy.yaml", service.endpoint, "tiny")
    until(lambda: done(endpoint, run))
    endpoint.kill_workers()
    found = wait(run, every=0.5, timeout=120)
    assert found["state"] == "done"
    log = (endpoint.root / run / "driver.log").read_text()
    assert log.count("=== ") == 1  # one driver did it all
    assert "report:" in log


def test_resume_when_the_node_is_lost(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    """The endpoint's worker, the driver and its workers are killed; submitting the run again loses nothing."""
    (laptop / "toy.yaml").write_text(SLOW)
    run = submit("toy.yaml", service.endpoint, "tiny")
    before = until(lambda: len(d := done(endpoint, run)) >= 3 and d)
    endpoint.kill_workers()
    for process in endpoint.drivers():
        process.kill()
    found = status(run)
    assert found["state"] == "interrupted"
    assert found["driver"] is None
    assert submit(run=run) == run
    found = wait(run, every=0.5, timeout=120)
    assert (found["state"], found["frames"]) == ("done", 40)
    after = done(endpoint, run)
    assert len(after) == len(set(after))
    assert set(before) <= set(after)


def test_a_run_at_work_is_not_started_twice(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    (laptop / "toy.yaml").write_text(SLOW)
    run = submit("toy.yaml", service.endpoint, "tiny")
    assert submit("toy.yaml", service.endpoint, "tiny") == run
    assert submit(run=run) == run
    (laptop / "toy.yaml").write_text(SLOW.replace("seed: 4", "seed: 5"))
    with pytest.raises(InputError, match=r"toy.yaml: this file has changed since .* wait for it to end"):
        submit("toy.yaml", service.endpoint, "tiny")
    assert (endpoint.root / run / "driver.log").read_text().count("=== ") == 1
    assert wait(run, every=0.5, timeout=120)["state"] == "done"
    assert submit("toy.yaml", service.endpoint, "tiny") == run  # now the changed file is taken
    assert wait(run, every=0.5, timeout=120)["state"] == "done"
    assert "seed: 5" in (endpoint.root / run / "toy/campaign.yaml").read_text()


def test_a_site_outside_the_list_is_refused(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    for site in ("local", "../tiny", str(endpoint.home / "tiny.yaml"), "tiny.yaml"):
        with pytest.raises(InputError) as found:
            submit("toy.yaml", service.endpoint, site)
        assert "campaigns sent to this endpoint may not use this site" in str(found.value)
        assert f"add it to 'sites' in {endpoint.file}" in str(found.value)
    assert list((laptop / "state/campaign/remote").iterdir()) == []  # nothing was started, nothing is kept


@pytest.mark.parametrize(
    ("root", "said"), [("/tmp", "absolute path"), ("../x", "'..' could leave"), ("a/../../x", "'..' could leave")]
)
def test_a_root_outside_the_endpoints_own_is_refused(
    laptop: Path, endpoint: Endpoint, service: WebService, root: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        submit("toy.yaml", service.endpoint, "tiny", options=Options(root=root))
    files = protocol.pack_files({"toy.yaml": TOY.encode()})
    request = {"action": "submit", "run": "toy-1", "site": "tiny", "file": "toy.yaml", "files": files, "root": root}
    assert said in refused(service, **request)
    assert said in refused(service, action="fetch", run="toy-1", root=root, what="report")


def test_links_are_refused(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    outside = endpoint.home / "outside"
    outside.mkdir()
    (endpoint.root / "link").symlink_to(outside)
    with pytest.raises(InputError, match=r"link is a symbolic link, which could leave"):
        submit("toy.yaml", service.endpoint, "tiny", options=Options(root="link"))
    (endpoint.root / "toy-2/inputs").mkdir(parents=True)
    (endpoint.root / "toy-2/inputs/toy.yaml").symlink_to(outside / "toy.yaml")
    files = protocol.pack_files({"toy.yaml": TOY.encode()})
    request = {"action": "submit", "run": "toy-2", "site": "tiny", "file": "toy.yaml", "files": files}
    assert "symbolic link" in refused(service, **request)
    assert list(outside.iterdir()) == []


def test_files_that_leave_their_folder_are_refused(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    for name in ("../../evil", "/tmp/evil", ".ssh/authorized_keys", "a/../../evil"):
        files = protocol.pack_files({"toy.yaml": TOY.encode(), name: b"x"})
        request = {"action": "submit", "run": "toy-3", "site": "tiny", "file": "toy.yaml", "files": files}
        assert "files: " in refused(service, **request)
    files = protocol.pack_files({"toy.yaml": TOY.encode(), "sitecustomize.py": b"x"})
    request = {"action": "submit", "run": "toy-3", "site": "tiny", "file": "toy.yaml", "files": files}
    assert "sitecustomize.py: this file was sent and the campaign does not name it" in refused(service, **request)
    for run in ("../toy", "/tmp", "a/b", ""):
        assert "run: a run id has" in refused(service, action="status", run=run)
    assert not (endpoint.root / "toy-3").exists()  # nothing is left of what was refused


def test_too_much_is_refused_on_both_sides(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    sent = len(service.sent)
    (laptop / "big.extxyz").write_bytes(b"x" * (protocol.LARGEST + 1))
    text = TOY.replace("sample: [", "sample: [{method: file, file: big.extxyz}, ")
    (laptop / "toy.yaml").write_text(text)
    with pytest.raises(InputError, match=r"big.extxyz: the campaign's files have 6.3 MB .* carries 6.3 MB"):
        submit("toy.yaml", service.endpoint, "tiny")
    assert len(service.sent) == sent
    files = {"toy.yaml": text.encode(), "big.extxyz": b"x" * (protocol.LARGEST + 1)}
    request = {"action": "submit", "run": "toy-4", "site": "tiny", "file": "toy.yaml"}
    assert "the campaign's files have 6.3 MB" in refused(service, files=protocol.pack_files(files), **request)
    # what is just allowed is under the service's limit, on the way there and back
    files["big.extxyz"] = b"x" * (protocol.LARGEST - len(text.encode()))
    assert "big.extxyz" in refused(service, files=protocol.pack_files(files), **request)  # no frames in it
    assert service.sent[-1] < 10_000_000


def test_results_that_are_too_large_come_with_the_command(
    laptop: Path, endpoint: Endpoint, service: WebService
) -> None:
    run = submit("toy.yaml", service.endpoint, "tiny")
    wait(run, every=0.5, timeout=120)
    model = endpoint.root / run / "toy/models/a.pt"
    model.write_bytes(b"x" * protocol.LARGEST)
    try:
        endpoint.allow(host="hpc.example.org")
        found = fetch(run, "model")
        assert found.paths == []
        assert found.size > protocol.LARGEST
        assert found.commands[0] == f"mkdir -p {run}"
        assert found.commands[1].startswith(f"scp hpc.example.org:{model} ")
        endpoint.allow(collection="6c54cade-bde5-45c1-bdea-f4bd71dba2cc")
        first = fetch(run, "model").commands[0]
        assert first.startswith(f"globus transfer 6c54cade-bde5-45c1-bdea-f4bd71dba2cc:{model} ")
    finally:
        endpoint.allow()
    model.write_bytes(b"x" * (protocol.LARGEST - 100_000))  # just allowed: it comes through Globus Compute
    assert fetch(run, "model").paths[0].name == "a.pt"


def test_what_is_wrong_with_a_file_is_said_with_its_line(laptop: Path, service: WebService) -> None:
    sent = len(service.sent)
    (laptop / "toy.yaml").write_text(TOY.replace("size: 4", "size: 0"))
    with pytest.raises(InputError, match=r"toy.yaml:7: select.size"):
        submit("toy.yaml", service.endpoint, "tiny")
    assert len(service.sent) == sent
    wrong = TOY.replace("engine: fake", "engine: shell").encode()
    files = protocol.pack_files({"toy.yaml": wrong})
    said = refused(service, action="submit", run="toy-5", site="tiny", file="toy.yaml", files=files)
    assert ": toy.yaml:8: label.engine: there is no such engine, got 'shell'" in said
    lines = "# elements: Ar\nshell touch /tmp/evil\npair_style lj/cut 8\n"
    text = TOY.replace("  structure", "  potential: {lammps: ar.lmp}\n  structure")
    files = protocol.pack_files({"toy.yaml": text.encode(), "ar.lmp": lines.encode()})
    said = refused(service, action="submit", run="toy-5", site="tiny", file="toy.yaml", files=files)
    assert "'shell" in said


def test_labels_are_kept_below_the_endpoints_folder(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    text = TOY.replace("engine: fake}", "engine: ase, calculator: lj, cache: /tmp/labels}", 1)
    files = protocol.pack_files({"toy.yaml": text.encode()})
    said = refused(service, action="submit", run="toy-6", site="tiny", file="toy.yaml", files=files)
    assert "toy.yaml:8: label.cache: a campaign that was sent keeps its labels under" in said


def test_a_machine_that_allows_nothing(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    text = endpoint.file.read_text()
    try:
        endpoint.file.unlink()
        with pytest.raises(InputError, match=r"takes no campaigns from elsewhere: it has no .*remote.yaml"):
            submit("toy.yaml", service.endpoint, "tiny")
        endpoint.file.write_text("root: !!python/object/apply:os.getcwd []\nsites: [tiny]\n")
        with pytest.raises(InputError, match=r"remote.yaml:1: "):
            submit("toy.yaml", service.endpoint, "tiny")
        endpoint.file.write_text(text.replace("sites", "site"))
        with pytest.raises(InputError, match=r"remote.yaml:2: site: .* did you mean 'sites'"):
            submit("toy.yaml", service.endpoint, "tiny")
        endpoint.file.write_text(text.replace(str(endpoint.root), "runs"))
        with pytest.raises(InputError, match=r"remote.yaml:1: root: .* absolute path"):
            submit("toy.yaml", service.endpoint, "tiny")
    finally:
        endpoint.file.write_text(text)


def test_a_driver_that_ends_at_once_says_why(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    """The endpoint's checks passed, but the driver could not begin: its log comes with the status."""
    site = endpoint.home / "tiny.yaml"
    text = site.read_text()
    run = f"toy-{uuid.uuid4().hex[:8]}"
    (endpoint.root / run).mkdir()
    (endpoint.root / run / "toy").write_text("in the way")
    try:
        submit("toy.yaml", service.endpoint, "tiny", run=run)
        found = wait(run, every=0.5, timeout=60)
    finally:
        site.write_text(text)
    assert found["state"] == "failed"
    assert any("toy" in line for line in found["log"])


def test_other_computers_and_other_versions(
    laptop: Path, endpoint: Endpoint, service: WebService, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit("toy.yaml", service.endpoint, "tiny", options=Options(until="sample"))
    monkeypatch.setenv("XDG_STATE_HOME", str(laptop / "elsewhere"))
    with pytest.raises(InputError, match=r"run .*: no such run was submitted from this computer; .*--endpoint ID"):
        status(run)
    assert status(run, service.endpoint)["run"] == run
    with pytest.raises(InputError, match=rf"there is no such run in {endpoint.root} .*{run}"):
        status("toy-0", service.endpoint)
    monkeypatch.setattr("campaign.remote.service.PROTOCOL", 99)
    with pytest.raises(InputError, match="do not understand each other; install the same version"):
        status(run, service.endpoint)
    monkeypatch.undo()


def test_wrong_endpoints(laptop: Path, service: WebService, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--endpoint: an endpoint's id is needed, got 'perlmutter'"):
        submit("toy.yaml", "perlmutter", "tiny")
    other = str(uuid.uuid4())
    with pytest.raises(InputError, match=f"--endpoint: Globus Compute knows no endpoint {other}"):
        submit("toy.yaml", other, "tiny")
    monkeypatch.setattr(service, "state", "offline")
    with pytest.raises(InputError, match=r"is offline; start it on its machine: globus-compute-endpoint start"):
        submit("toy.yaml", service.endpoint, "tiny")


def test_a_function_that_is_gone_and_an_answer_that_does_not_come(
    laptop: Path, endpoint: Endpoint, service: WebService
) -> None:
    run = submit("toy.yaml", service.endpoint, "tiny", options=Options(until="sample"))
    remote = Remote(run, patience=0.0)
    with pytest.raises(CampaignError, match=r"has not answered in 0 s; .* Type the same command again later"):
        remote.status()
    service.functions.clear()
    with pytest.raises(InputError, match=r"refuses the function of this run .* submit the run again"):
        status(run)
    submit(run=run)
    assert status(run)["run"] == run


def test_a_sleeping_network_does_not_end_a_wait(
    laptop: Path, service: WebService, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit("toy.yaml", service.endpoint, "tiny")
    whole = client.Service.call
    calls: list[int] = []

    def call(self: Any, *words: Any) -> Any:
        calls.append(1)
        if len(calls) < 4:
            raise CampaignError("Globus cannot be reached")
        return whole(self, *words)

    monkeypatch.setattr(client.Service, "call", call)
    told: list[Any] = []
    assert wait(run, every=0.2, timeout=120, tell=told.append)["state"] == "done"
    assert told[:3] == ["Globus cannot be reached"] * 3
    calls[:] = [-100] * 0
    monkeypatch.setattr(client.Service, "call", lambda *_: (_ for _ in ()).throw(CampaignError("gone")))
    with pytest.raises(CampaignError, match="gone"):
        wait(run, every=0.01)
