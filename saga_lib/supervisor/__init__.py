"""The frozen supervisor p_ψ: prefill, rollouts, replay and attention, whatever the MLLM family."""
