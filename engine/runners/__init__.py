"""Runners: one inference runtime on one device each, all of one shape (base.py)."""
