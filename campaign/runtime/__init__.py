"""Runners: where tasks are done."""
