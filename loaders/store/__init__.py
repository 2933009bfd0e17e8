"""The model store: names, downloads, and what has been pulled."""
