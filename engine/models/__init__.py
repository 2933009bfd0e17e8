"""Model families: which weights a decoder has and how its layers are wired."""
