"""Dataset and Column, the lazily loaded arrays."""
