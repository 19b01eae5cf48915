"""The frozen supervisor p_ψ: one module per MLLM family, and rollouts, replay and attention for all of them."""

from saga_lib.supervisor.base import Prefix, Supervisor, load_supervisor

__all__ = ["Prefix", "Supervisor", "load_supervisor"]
