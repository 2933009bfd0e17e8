"""One step: inputs, the recorded program, sampling, the loop around it."""
