"""How the miniature supervisors are made: pre-training, prompt tuning, half-taught ones."""
