"""What people open: models as files, validation as JSON, the report; and exports. All made from the store, any time.

``files`` writes models and JSON; ``report`` gathers what ``campaign.report`` draws, by ``sampling`` and ``selection``;
``headlines`` is what the terminal says at the end; ``export`` writes frames.
"""
