"""The stages of a campaign: the driver's side plans and commits, the worker's side works."""
