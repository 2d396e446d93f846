"""Models: one latent structure or algorithmic family per file."""
