"""``campaign run --detach``: everything is checked here and now, and the driver goes into a batch job of its own."""

from __future__ import annotations

from pathlib import Path


def detach(file: Path, site_name: str, root: Path, until: str | None, retry: bool) -> str:
    """Check a campaign on a site, submit its driver as a batch job and return a sentence on where to look.

    The job gives the same ``campaign run`` again; where its time is up before the campaign is done, it submits
    another one.

    Raises
    ------
    InputError
        As ``campaign check`` and ``campaign run``; the site has no batch system; the batch system refused the job.
    """
    from campaign.config import load_campaign, load_site
    from campaign.config.site_checks import check_driver_filled_in
    from campaign.errors import InputError
    from campaign.pipeline import check_run_path
    from campaign.plan import make_plan
    from campaign.runtime.driver_job import cost_of, job_of, submit_driver
    from campaign.store.rundir import check_free

    make_plan(file, site_name)
    site = load_site(site_name)
    unset = check_driver_filled_in(site)
    if unset:
        raise InputError(*unset)
    spec = load_campaign(file).spec
    if until is not None and until not in spec.stages:
        raise InputError(f"--until: this campaign has no stage {until}; write one of {', '.join(spec.stages)}.")
    run = root.resolve() / spec.name
    check_run_path(run)
    check_free(run)
    place = str(Path(site_name).resolve()) if "/" in site_name or site_name.endswith((".yaml", ".yml")) else site_name
    words = ["run", str(file.resolve()), "--site", place, "--root", str(root.resolve())]
    words += ["--until", until] if until else []
    words += ["--retry-quarantined"] if retry else []
    job = submit_driver(site, run, words, Path.cwd())
    return (
        f"job {job} drives the campaign in {run}; it takes {cost_of(job_of(site))}. The jobs that it asks for end with "
        f"it. Look at it with: campaign status {run} --watch"
    )
