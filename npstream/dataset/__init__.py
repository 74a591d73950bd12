"""Dataset and Column: lazily loaded arrays."""
