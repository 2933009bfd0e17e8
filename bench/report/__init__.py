"""Everything measured for a model, as plots and one page."""
