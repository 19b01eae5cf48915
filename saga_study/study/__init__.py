"""Carry a study out: the command line, the plan, the manifest, the notebooks' execution."""
