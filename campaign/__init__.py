"""Find the smallest set of expensive calculations that gives a machine-learned potential one can trust.

``campaign.pipeline`` shows the whole campaign on one screen; start reading there.
Nothing heavy is imported here: ``import campaign`` stays under 0.2 s.
"""

__version__ = "0.1.0"
