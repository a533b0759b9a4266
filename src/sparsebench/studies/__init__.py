"""Many runs: a study file, its plan, the processes that work it off."""
