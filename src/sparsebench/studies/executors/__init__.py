"""Who trains the runs of a study: processes of this machine, SLURM jobs."""
