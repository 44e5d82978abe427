"""Measurement of the runtime: what a render costs, and how near it comes to what its steps allow."""
