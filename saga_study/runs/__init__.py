"""Runs of a study: their folders, their queue, the process that trains one, and how they are shown to be reproducible."""
