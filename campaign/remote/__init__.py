"""Campaigns on a Globus Compute endpoint: sent from a laptop, run there, their results fetched.

On the laptop: ``client`` (submit, status, wait, fetch), ``service`` (the one door to Globus), ``commands``.
What travels: ``function`` (the one function that is registered) and ``protocol`` (requests and answers, plain JSON).
On the endpoint: ``serve`` (answers a request), ``allowed`` (what the machine's owner allows), ``inbox`` (the files that
came), ``driver`` (the campaign's own process, which outlives the function call).
"""
