"""What a checkpoint is, whatever its format: config, checks, report, stacked matrices."""
