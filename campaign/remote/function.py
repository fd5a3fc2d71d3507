"""The function that Globus Compute runs on the endpoint: sent as this text, its argument and result as JSON."""

# No annotations and no names from outside: on the endpoint there is nothing but this text.


def campaign_remote(request):  # type: ignore[no-untyped-def]
    """Answer one request of ``campaign remote`` (``campaign.remote.protocol``); never raises."""
    try:
        from campaign.remote.serve import answer
    except ImportError as error:
        import sys

        remedy = "install campaign into the Python environment of the endpoint's workers"
        return {"kind": "failed", "problems": [f"{sys.executable} cannot run campaigns ({error}); {remedy}."]}
    return answer(request)
