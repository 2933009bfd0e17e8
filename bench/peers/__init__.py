"""Other engines beside ours: the same files, sample by sample in turn, in one run."""
