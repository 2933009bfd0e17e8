"""What users of a server see: requests at a rate, and the figures of ``vllm bench serve``."""
