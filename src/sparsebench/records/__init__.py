"""What a run leaves behind, and the one table over all runs. Torch-free: results can be read where nothing can be trained."""
