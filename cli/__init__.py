"""The ``halfbyte`` program: typer commands over the engine, rich for people's eyes."""
