"""What a model needs and what a cluster has: arithmetic, nothing is loaded or started."""
