"""The run directory: Zarr frames, the ledger, the lock."""
