"""What differs between architectures, and nothing else."""
