"""Files that clients send, and batches over them, kept on disk."""
