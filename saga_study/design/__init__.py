"""The study's design: which runs each table, figure and choice needs."""
