"""The frozen supervisor p_ψ: prefill, rollouts, replay and attention, whatever the MLLM family."""

from saga_lib.supervisor.base import Prefix, Supervisor

__all__ = ["Prefix", "Supervisor"]
