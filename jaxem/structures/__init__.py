"""Which latent goes with which observation, and what says which component comes."""
