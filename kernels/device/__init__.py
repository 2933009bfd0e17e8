"""What all kinds share: device code, workspace, checks of inputs, the table of GPUs."""
