"""Training of the two networks, T-KLVAE and MTD, and the data they learn from."""
