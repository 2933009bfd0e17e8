"""What quantizing cost, as pages and choices: HTML reports, budgets of bits."""
