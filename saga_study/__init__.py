"""The study of SAGA: its methods and runs, its tables and figures, the command that carries it out."""
