"""Processes of their own, with limits, for work on what strangers wrote."""
