"""Several models in one server: loaded when they are asked for, unloaded when others need room."""
